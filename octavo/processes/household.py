"""What a parent of processes waits for, all in one place: their notes, signals and moments; and where they meet.

Signals are bytes to read, so that whoever waits for many things waits for them too; they interrupt nothing.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import selectors
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from octavo.child import Channel
from octavo.processes.heartbeat import Watchdog

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: seconds that a child may take to end once it has said so, or was told to
GRACE_S = 5.0
#: what a Unix socket's path may have, on every system
_MAX_PATH_LEN = 100


class Household:
    """Owner of the selector, the timers and the run directory: the folder in which the processes meet, with their
    sockets and what the engine writes down for those after it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self.counter = itertools.count()
        self.run_directory = make_run_directory()
        self.is_stopping = False

    def listen(self, end: Channel | socket.socket, take: Callable[[], None]) -> None:
        """Call whenever there is something to read."""
        self._selector.register(end, selectors.EVENT_READ, take)

    def leave(self, end: Channel) -> None:
        self._selector.unregister(end)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self.counter), work))

    def unless_stopping(self, work: Callable[[], None]) -> Callable[[], None]:
        return lambda: None if self.is_stopping else work()

    def wait(self, watchdogs: Iterable[Watchdog]) -> None:
        """Until something comes or a moment has; whoever it concerns has been called then, but for watchdogs."""
        now = time.monotonic()
        due = max(0.0, self._timers[0][0] - now) if self._timers else math.inf
        patience = min(due, *(watchdog.seconds_left(now) for watchdog in watchdogs))
        for key, _ in self._selector.select(None if math.isinf(patience) else patience):
            key.data()

    def run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        self._selector.close()
        shutil.rmtree(self.run_directory, ignore_errors=True)


def make_run_directory() -> str:
    """Private, and short enough for a socket in it."""
    path = tempfile.mkdtemp(prefix="octavo-")
    if len(path) > _MAX_PATH_LEN - len("/engine-999999"):
        os.rmdir(path)
        path = tempfile.mkdtemp(prefix="octavo-", dir="/tmp")
    return path


@contextmanager
def hearing_signals() -> Iterator[socket.socket]:
    """A socket on which each signal is a byte, its number. Others than SIGNALS may come: pass over them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for end in (ours, theirs):
            end.setblocking(False)
        old_fd = signal.set_wakeup_fd(theirs.fileno())
        old_handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        try:
            yield ours
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_fd)
