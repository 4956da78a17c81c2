"""The parent of processes: the tasks it hands to them, all that it waits for, and when it restarts one.

ends after    -        1 s      1 s      ...                  serves for STABLE_S: counted from the start again
waits         0.5 s    1 s      2 s      4 s      8 s      then None: give up

An end that a request may have caused is not counted; it only makes the next wait longer.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from octavo.channel import Channel
from octavo.config import DataParallelRouting, EngineConfig, ModelConfig
from octavo.processes.heartbeat import Watchdog
from octavo.server_config import AdmissionConfig, ServerConfig

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: seconds that a child may take to exit once it has closed its channel, or was told to exit
GRACE_S = 5.0
#: begins an address of engines on one machine, behind one supervisor
UNIX = "unix:"
#: the longest path of a Unix socket that every system allows
_MAX_PATH_LEN = 100


class Household:
    """Owner of the selector, the timers and the run directory, which holds the processes' sockets and what an engine
    records for the next one."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self.counter = itertools.count()
        self.run_directory = make_run_directory()
        self.is_stopping = False

    def listen(self, end: Channel | socket.socket, take: Callable[[], None]) -> None:
        """Call `take` whenever there is something to read."""
        self._selector.register(end, selectors.EVENT_READ, take)

    def leave(self, end: Channel) -> None:
        self._selector.unregister(end)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self.counter), work))

    def unless_stopping(self, work: Callable[[], None]) -> Callable[[], None]:
        return lambda: None if self.is_stopping else work()

    def wait(self, watchdogs: Iterable[Watchdog], at_most: float = math.inf) -> None:
        """Wait for something to read, and call who listens; return when a timer or a watchdog is due, too, or after so
        many seconds."""
        now = time.monotonic()
        due = max(0.0, self._timers[0][0] - now) if self._timers else math.inf
        patience = min(at_most, due, *(watchdog.seconds_left(now) for watchdog in watchdogs))
        for key, _ in self._selector.select(None if math.isinf(patience) else patience):
            key.data()

    def run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        self._selector.close()
        shutil.rmtree(self.run_directory, ignore_errors=True)


def make_run_directory() -> str:
    """A private folder, with a path short enough for a socket in it."""
    path = tempfile.mkdtemp(prefix="octavo-")
    if len(path) > _MAX_PATH_LEN - len("/engine-999999"):
        os.rmdir(path)
        path = tempfile.mkdtemp(prefix="octavo-", dir="/tmp")
    return path


@contextmanager
def hearing_signals() -> Iterator[socket.socket]:
    """A socket from which each signal is read as one byte, its number; it interrupts nothing. Signals that are not in
    SIGNALS may come: ignore them."""
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


MAX_TRIES = 5
FIRST_DELAY_S = 0.5
#: seconds; a process that served this long was sound when it started
STABLE_S = 60.0


class Restarts:
    """Counts how often one process ended. All times must come from the same clock."""

    def __init__(self) -> None:
        self.num_tries = 0
        self._num_excused = 0
        self._served_since: float | None = None

    def serves(self, now: float) -> None:
        self._served_since = now

    @property
    def has_served(self) -> bool:
        """Whether it has served since its last start."""
        return self._served_since is not None

    def next_delay(self, now: float, *, is_excused: bool = False) -> float | None:
        """The process ended -> seconds to wait before the next start; None: give up. is_excused: something else may be
        the cause."""
        if self._served_since is not None and now - self._served_since >= STABLE_S:
            self.num_tries = self._num_excused = 0
        self._served_since = None
        if is_excused:
            self._num_excused += 1
        elif self.num_tries == MAX_TRIES:
            return None
        else:
            self.num_tries += 1
        return FIRST_DELAY_S * 2.0 ** (min(self.num_tries + self._num_excused, MAX_TRIES) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficTask:
    """How an engine exchanges KV blocks with others. listens: the address where it lends its own. peers: those of
    engines that lend theirs. secret: what all of them know. timeout_s: kv_transfer_timeout. min_tokens: kv_min_tokens.
    """

    secret: bytes = field(repr=False)
    timeout_s: float
    min_tokens: int
    listens: str | None = None
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTask:
    """address: the ZMQ endpoint that the engine opens. logs_stats: log a summary every few seconds. hang_timeout_s:
    seconds of silence after which the parent assumes a hang; 0: never. step_record: the file in which it records the
    requests of its steps. num_deaths: fingerprint -> the number of engines that died at that request. index: its number
    among num_engines with the same options. serves: as in a WorkerTask. traffic: its exchange of KV blocks with others.
    """

    config: EngineConfig
    admission: AdmissionConfig
    address: str
    model_name: str
    logs_stats: bool
    hang_timeout_s: float
    run_directory: str
    step_record: str
    num_deaths: Mapping[str, int]
    index: int = 0
    num_engines: int = 1
    serves: bool = True
    traffic: TrafficTask | None = None

    @property
    def name(self) -> str:
        """Of its process."""
        return "engine" if self.num_engines == 1 else f"engine {self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndTask:
    """listening_fd: the socket that all front ends share. app: "module:function", which makes the ASGI app from
    (client, settings). seed: for the seeds of requests that have none. num_engines: those that it sends requests to,
    and routing: by which it chooses one. num_prefill: those after them, of which it asks metrics and events only."""

    index: int
    seed: int
    model: ModelConfig
    server: ServerConfig
    app: str
    settings: Any
    listening_fd: int
    run_directory: str
    num_engines: int
    routing: DataParallelRouting
    num_prefill: int = 0


def front_end_identity(index: int, process_id: int) -> str:
    """A front end's name on the engine's socket. A restarted one has a new name."""
    return f"front-end-{index}-{process_id}"
