"""A load from this process, or from several so that the client is not the bottleneck.

parent --share--> child    "ready"    child <--moment to begin-- parent    child --counts, then what came back--> parent
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized

from octavo.bench.load import LoadShare, OnProgress, Sent, run_share, shares
from octavo.errors import OctavoError
from octavo.observe.machine import num_cores

STREAMS_A_PROCESS = 400
REPORT_EVERY_S = 0.2
HEAD_START_S = 0.05  # time for the start message to reach every process


def processes_for(num_streams: int) -> int:
    """One per 400 streams, up to half of the cores: the server may run on this machine too."""
    return max(1, min(-(-num_streams // STREAMS_A_PROCESS), num_cores() // 2))


def run_load(share: LoadShare, num_procs: int, on_progress: OnProgress) -> Sent:
    """All answers, in any order. `cpu` is that of the busiest process."""
    if num_procs == 1:
        return run_share(share, time.monotonic, on_progress)
    context = multiprocessing.get_context("spawn")
    children: dict[Connection, BaseProcess] = {}
    try:
        num_left = context.Value("i", num_procs)
        for part in shares(share, num_procs):
            mine, theirs = context.Pipe()
            children[mine] = context.Process(target=_child, args=(theirs, part, num_left), daemon=True)
            _start(children[mine])
            theirs.close()
        for pipe, child in children.items():
            _receive(pipe, child)
        begin = time.monotonic() + HEAD_START_S
        for pipe in children:
            pipe.send(begin)
        return _joined(_collect(children, on_progress))
    finally:
        for child in children.values():
            child.terminate()
            child.join()


def _start(child: BaseProcess) -> None:
    """Start a child that ignores Ctrl-C: the parent ends its children."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))  # inherited by the child
    try:
        child.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _collect(children: dict[Connection, BaseProcess], on_progress: OnProgress) -> list[Sent]:
    running = dict(children)
    parts: list[Sent] = []
    while running:
        for pipe in wait(list(running)):
            assert isinstance(pipe, Connection), "only pipes are waited for"
            got = _receive(pipe, running[pipe])
            if isinstance(got, Sent):
                parts.append(got)
                del running[pipe]
            elif isinstance(got, int):
                on_progress(got)
    return parts


def _receive(pipe: Connection, child: BaseProcess) -> object:
    try:
        return pipe.recv()
    except EOFError:
        child.join()
        raise OctavoError(
            f"a client process ended with exit code {child.exitcode} before its requests; its output is above"
        ) from None


def _joined(parts: list[Sent]) -> Sent:
    return Sent(
        answers=[answer for part in parts for answer in part.answers],
        long_answers=[answer for part in parts for answer in part.long_answers],
        begin=min(part.begin for part in parts),
        end=max(part.end for part in parts),
        cpu=max(part.cpu for part in parts),
    )


def _child(pipe: Connection, share: LoadShare, num_left: Synchronized[int]) -> None:
    """The child's main function; ends silently if the parent is gone. num_left: processes that still have requests."""
    num_new, reported_at = 0, 0.0

    def count(num_ended: int) -> None:
        """Report ended requests to the parent, at most every REPORT_EVERY_S."""
        nonlocal num_new, reported_at
        num_new += num_ended
        if time.monotonic() - reported_at > REPORT_EVERY_S:
            pipe.send(num_new)
            num_new, reported_at = 0, time.monotonic()

    def leave() -> None:
        with num_left.get_lock():
            num_left.value -= 1

    def begin_at() -> float:
        pipe.send("ready")
        begin: float = pipe.recv()
        return begin

    try:
        pipe.send(run_share(share, begin_at, count, leave, lambda: num_left.value == 0))
    except (EOFError, BrokenPipeError):
        pipe.close()
