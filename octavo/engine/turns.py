"""EngineTurns: many threads, one engine. One of the threads that wait for outputs runs it, for all of them.

    thread A   next ──▶ has the turn: runs commands and a step, puts outputs into all streams; repeats until A has news
    thread B   next ──▶ sleeps until its stream has an output, or until the turn is free and B must take it
    thread C   ask  ──▶ queues a command, which the thread with the turn runs between two steps

So requests of all threads share the steps, and a stream that is read slowly, or not at all, delays no other. Only the
thread that has the turn touches the engine.

Python may raise KeyboardInterrupt between any two bytecodes of the main thread. A step that has begun is finished
first: otherwise the scheduler's plan would never be computed, and its state would be wrong.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from types import FrameType
from typing import Any, TypeVar

from octavo.engine.llm_engine import LLMEngine
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
        self._inbox = _Inbox(requests)

    def __next__(self) -> RequestOutput:
        return self._turns.next(self._inbox)

    def close(self) -> None:
        """Stop reading. A thread that waits for an output gets StopIteration."""
        self._turns.leave(self._inbox)

    def __del__(self) -> None:
        # The garbage collector may call this at any moment, even in a step: so it only queues the abort.
        if self._inbox.waits_for:
            self._turns.abort_later(self._inbox.waits_for)


class _Inbox:
    """A stream's unread outputs. The engine refers to the inbox, not to the stream, so the stream can be dropped."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._unread: OrderedDict[object, RequestOutput] = OrderedDict()
        self._numbers = itertools.count()
        self.is_begun = False
        self.waits_for: set[str] = set()  # requests whose last output has not been read

    def begin(self) -> Sequence[Request]:
        """The requests to queue; none if that was done. Once `is_begun`, `waits_for` is complete."""
        if self.is_begun:
            return ()
        self.waits_for.update(request.request_id for request in self._requests)
        self.is_begun = True
        return self._requests

    @property
    def has_news(self) -> bool:
        """There is an output to read, or none to wait for."""
        return bool(self._unread) or not self.waits_for

    def put(self, output: RequestOutput, kind: RequestOutputKind) -> None:
        key: object = output.request_id if kind is RequestOutputKind.CUMULATIVE else next(self._numbers)
        self._unread[key] = output

    def take(self) -> RequestOutput | None:
        if not self._unread:
            return None
        _, output = self._unread.popitem(last=False)
        if output.finished:
            self.waits_for.discard(output.request_id)
        return output

    def end(self) -> set[str]:
        """Wait for no more outputs -> the requests that were waited for."""
        left, self.waits_for, self.is_begun = self.waits_for, set(), True
        self._unread.clear()
        return left


class _StepGuard:
    """Delays Ctrl-C inside its block: the first one in a step takes effect after the step, the second at once. Does
    nothing on other threads, which Python never interrupts, or if the program has its own handler."""

    def __init__(self) -> None:
        self._before: Any = None
        self._is_in_step = self._is_pressed = False

    def __enter__(self) -> _StepGuard:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def run(self, turn: Callable[[bool], None], steps: bool) -> None:
        self._is_in_step = True
        try:
            turn(steps)
        finally:
            self._is_in_step = False
        if self._is_pressed:
            self._is_pressed = False
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._is_pressed or not self._is_in_step:
            raise KeyboardInterrupt
        self._is_pressed = True


class EngineTurns:
    """Owner of an engine that several threads use."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        self._lock = threading.RLock()  # guards the rest; not held in a step. Reentrant for signal handlers
        self._holder: int | None = None  # the thread that has the turn
        # sleeping threads in order of arrival: what wakes each, and whether it may go on
        self._waiters: dict[object, tuple[threading.Condition, Callable[[], bool]]] = {}
        self._inboxes: dict[str, tuple[_Inbox, RequestOutputKind]] = {}  # request id -> where to put its outputs
        self._commands: deque[Command] = deque()
        self._left: deque[set[str]] = deque()  # requests to abort: nobody reads them
        self._end: EngineDeadError | None = None
        self._is_closing = False

    def next(self, inbox: _Inbox) -> RequestOutput:
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
        answer: Future[Answer] = Future()

        def reply(engine: LLMEngine) -> None:
            try:
                if self._end is not None:
                    raise self._dead()
                answer.set_result(question(engine))
            except Exception as refusal:
                answer.set_exception(refusal)

        self._commands.append(reply)
        self._until(answer.done, steps=False)
        return answer.result()

    def leave(self, inbox: _Inbox) -> None:
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

    def _queue(self, engine: LLMEngine, inbox: _Inbox) -> None:
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
            with _StepGuard() as guard:
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
