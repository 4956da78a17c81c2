"""EngineTurns: many threads, one engine. One of the threads that wait for outputs runs it, for all of them.

    thread A   next ──▶ has the turn: runs commands and a step, puts outputs into all streams; repeats until A has news
    thread B   next ──▶ sleeps until its stream has an output, or until the turn is free and B must take it
    thread C   ask  ──▶ queues a command, which the thread with the turn runs between two steps

So requests of all threads share the steps, and a stream that is read slowly, or not at all, delays no other. Only the
thread that has the turn touches the engine.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NoReturn, TypeVar

from octavo.engine.inbox import Inbox
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.step_guard import StepGuard
from octavo.errors import EngineDeadError, InvalidRequestError
from octavo.outputs import RequestOutput
from octavo.request import Request
from octavo.sampling_params import RequestOutputKind

Answer = TypeVar("Answer")
Command = Callable[[LLMEngine], None]


class OutputStream(Iterator[RequestOutput]):
    """The outputs of one call's requests, which are queued when the first output is asked for.

    Several threads may read it. Of cumulative outputs, only a request's newest is kept until it is read. `close`, or
    dropping the stream, aborts the requests that still run.
    """

    def __init__(self, turns: EngineTurns, requests: Sequence[Request]) -> None:
        self._turns = turns
        self._inbox = Inbox(requests)

    def __next__(self) -> RequestOutput:
        return self._turns.next(self._inbox)

    def fork(self, parent_id: str, requests: Sequence[Request]) -> None:
        """Add requests that begin with the tokens of one of the stream's own. Raises InvalidRequestError if that has
        ended, or cannot be forked."""
        self._turns.fork(self._inbox, parent_id, requests)

    def abort(self, request_id: str) -> None:
        """End one of the stream's requests and free its blocks; its last output has finish_reason "abort"."""
        self._turns.abort(self._inbox, request_id)

    def close(self) -> None:
        """Stop reading. A thread that waits for an output gets StopIteration."""
        self._turns.leave(self._inbox)

    def __del__(self) -> None:
        # The garbage collector may call this at any moment, even in a step: so it only queues the abort.
        if self._inbox.waits_for:
            self._turns.abort_later(self._inbox.waits_for)


class EngineTurns:
    """Owner of an engine that several threads use."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        self._lock = threading.RLock()  # guards the rest; not held in a step. Reentrant for signal handlers
        self._holder: int | None = None  # the thread that has the turn
        # sleeping threads in order of arrival: what wakes each, and whether it may go on
        self._waiters: dict[object, tuple[threading.Condition, Callable[[], bool]]] = {}
        self._inboxes: dict[str, tuple[Inbox, RequestOutputKind]] = {}  # request id -> where to put its outputs
        self._commands: deque[Command] = deque()
        self._left: deque[set[str]] = deque()  # requests to abort: nobody reads them
        self._end: EngineDeadError | None = None
        self._is_closing = False

    def next(self, inbox: Inbox) -> RequestOutput:
        """The inbox's next output. Raises StopIteration, InvalidRequestError, EngineDeadError."""
        if not inbox.is_begun:
            self.ask(lambda engine: self._queue(engine, inbox))
        while True:
            if not inbox.has_news:
                self._until(lambda: inbox.has_news or self._end is not None, steps=True)
            with self._lock:
                output = inbox.take()
                if output is not None:
                    return output
                if not inbox.waits_for:
                    raise StopIteration
                if self._end is not None:
                    inbox.end()
                    raise self._dead()

    def ask(self, question: Callable[[LLMEngine], Answer]) -> Answer:
        """Have the engine answer between two steps."""
        answers: list[Callable[[], Answer]] = []

        def reply(engine: LLMEngine) -> None:
            try:
                if self._end is not None:
                    raise self._dead()
                answer = question(engine)
                answers.append(lambda: answer)
            except Exception as refusal:
                answers.append(partial(_throw, refusal))

        self._commands.append(reply)
        self._until(lambda: bool(answers), steps=False)
        return answers.pop()()  # popped: an error that refers to itself would keep the caller's streams alive

    def fork(self, inbox: Inbox, parent_id: str, requests: Sequence[Request]) -> None:
        """Add requests that begin as copies of one of the inbox's, between two steps."""

        def fork(engine: LLMEngine) -> None:
            self._queue(engine, inbox)  # in case nobody has read it yet
            snapshot = engine.snapshot(parent_id)
            for request in requests:
                engine.add_request(request, snapshot)
                self._inboxes[request.request_id] = inbox, request.sampling_params.output_kind
                with self._lock:
                    is_read = inbox.add(request.request_id, parent_id)
                if not is_read:
                    self.abort_later({request.request_id})
                    raise InvalidRequestError("its stream was closed meanwhile, which has ended it")

        self.ask(fork)

    def abort(self, inbox: Inbox, request_id: str) -> None:
        """End one of the inbox's requests before the next step."""

        def abort(engine: LLMEngine) -> None:
            self._queue(engine, inbox)
            engine.abort_request(request_id)

        self.ask(abort)

    def leave(self, inbox: Inbox) -> None:
        with self._lock:
            self.abort_later(inbox.end())
            self._wake(needs_holder=False)

    def abort_later(self, request_ids: set[str]) -> None:
        """Abort before the next step. Takes no lock, so the garbage collector may call it at any moment."""
        self._left.append(request_ids)

    def close(self) -> None:
        """Free memory and threads after the current step. Threads that wait get EngineDeadError."""
        self._is_closing = True
        if self._holder != threading.get_ident():  # else a signal handler calls: the next turn closes
            self._until(lambda: self._end is not None, steps=False)

    def _queue(self, engine: LLMEngine, inbox: Inbox) -> None:
        for request in inbox.begin():
            try:
                engine.add_request(request)
            except Exception:
                self.abort_later(inbox.end())
                raise
            self._inboxes[request.request_id] = inbox, request.sampling_params.output_kind

    def _until(self, is_ready: Callable[[], bool], *, steps: bool) -> None:
        """Return when it is ready; meanwhile run the engine, unless another thread does."""
        me = threading.get_ident()
        if self._holder == me:
            raise InvalidRequestError(
                "the engine was called from within its own step, by a signal handler or a finaliser: "
                "only close() may be called there"
            )
        try:
            with StepGuard() as guard:
                while not self._sleep_or_hold(is_ready, me):
                    guard.run(self._turn, steps)
        finally:
            self._let_go(me)

    def _sleep_or_hold(self, is_ready: Callable[[], bool], me: int) -> bool:
        """True: it is ready. False: this thread has the turn now."""
        key = object()
        with self._lock:
            try:
                while not is_ready() and self._holder not in (None, me):
                    if key not in self._waiters:
                        self._waiters[key] = (threading.Condition(self._lock), is_ready)
                    self._waiters[key][0].wait()
            finally:
                self._waiters.pop(key, None)
            if is_ready():
                return True
            self._holder = me
            return False

    def _let_go(self, me: int) -> None:
        """Pass the turn on. A thread that was woken to take it, but was interrupted, passes it on too."""
        with self._lock:
            if self._holder == me:
                self._holder = None
            if self._holder is None:
                self._wake(needs_holder=True)

    def _wake(self, needs_holder: bool) -> None:
        """Wake all threads that are ready. needs_holder: also one that is not, to take the turn."""
        for bell, is_ready in self._waiters.values():
            if (is_due := is_ready()) or needs_holder:
                bell.notify()
                needs_holder &= is_due

    def _turn(self, steps: bool) -> None:
        """Run commands and, if steps, a step. A fault of the engine ends it for all threads."""
        try:
            self._obey()
            outputs = self._engine.step() if steps and self._end is None else []
            is_idle = not outputs and not self._engine.has_unfinished_requests
            assert not (steps and is_idle and self._inboxes), "the engine has lost the end of a request"
        except Exception as fault:
            self._close(fault)
            outputs = []
        self._deliver(outputs)

    def _obey(self) -> None:
        while self._left:
            for request_id in self._left.popleft():
                self._inboxes.pop(request_id, None)
                if self._end is None:
                    self._engine.abort_request(request_id)
        if self._is_closing and self._end is None:
            self._close(None)
        while self._commands:
            self._commands.popleft()(self._engine)

    def _deliver(self, outputs: Sequence[RequestOutput]) -> None:
        with self._lock:
            for output in outputs:
                if (found := self._inboxes.get(output.request_id)) is not None:  # else it was aborted
                    found[0].put(output, found[1])
                    if output.finished:
                        del self._inboxes[output.request_id]
            self._wake(needs_holder=False)

    def _close(self, fault: Exception | None) -> None:
        why = "this engine was closed; make a new one"
        if fault is not None:
            why = str(fault) if isinstance(fault, EngineDeadError) else f"the engine stopped: {fault!r}"
        self._end = EngineDeadError(why)
        self._end.__cause__ = fault
        self._inboxes.clear()
        self._engine.close()

    def _dead(self) -> EngineDeadError:
        """A new error each time, since each thread adds its own traceback."""
        assert self._end is not None, "the engine is alive"
        error = EngineDeadError(str(self._end))
        error.__cause__ = self._end.__cause__
        return error


def _throw(error: Exception) -> NoReturn:
    try:
        raise error
    finally:
        del error
