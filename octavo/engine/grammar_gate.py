"""GrammarGate: requests whose grammars are being compiled, on threads, while steps go on.

    add_request ──▶ gate ── compiled ──▶ scheduler          a request without a grammar, or with a known one, passes

A grammar was compiled before, where the request was checked, so what fails there is refused at once. An engine in
another process compiles it again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from octavo.request import Request, Sequence, SequenceId, SequenceState
from octavo.scheduler.step import SequenceUpdate
from octavo.structured.compiler import GrammarCompiler

NUM_THREADS = 2


class GrammarGate:
    """Owner of the requests that wait for their grammars. waiting: by id."""

    def __init__(self, compiler: GrammarCompiler, constrain: Callable[[GrammarCompiler], None]) -> None:
        """constrain: gives the compiler to the workers."""
        self._compiler, self._constrain = compiler, constrain
        self._threads: ThreadPoolExecutor | None = None
        self.waiting: dict[str, tuple[Request, Future[None]]] = {}
        self._workers_know = False

    def holds(self, request: Request) -> bool:
        """Keep a request until its grammar is compiled; False: it need not wait."""
        if request.grammar is None:
            return False
        if self._workers_know and self._compiler.knows(request.grammar):
            return False
        if self._threads is None:
            self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="octavo-grammar")
        self.waiting[request.request_id] = request, self._threads.submit(self._compile, request.grammar)
        return True

    def take_ready(self, seconds: float) -> list[tuple[Request, str | None]]:
        """The requests whose grammars are compiled, or failed, with the reason. Waits for one, but not long."""
        wait([future for _, future in self.waiting.values()], seconds, FIRST_COMPLETED)
        ready = [(request, future) for request, future in self.waiting.values() if future.done()]
        for request, _ in ready:
            del self.waiting[request.request_id]
        if ready and not self._workers_know and self._compiler.is_ready:
            self._constrain(self._compiler)
            self._workers_know = True
        return [(request, _reason(future)) for request, future in ready]

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _compile(self, text: str) -> None:
        self._compiler.matcher(text)


def refused_update(request: Request, reason: str) -> SequenceUpdate:
    """The end of a request that the scheduler never had."""
    ended = Sequence(SequenceId(-1), request, 0, list(request.prompt_token_ids), state=SequenceState.FINISHED)
    ended.finish_reason, ended.stop_reason = "error", reason
    request.sequences = [ended]
    return SequenceUpdate(ended, [])


def _reason(future: Future[None]) -> str | None:
    fault = future.exception()
    return None if fault is None else str(fault)
