"""A front end's connections: how long each may wait for its client.

    connected, answered         idle        --timeout-keep-alive
    a head that is coming       half-open   --timeout-request-head      408
    a body that is coming       half-open   --timeout-request-body      408
    an unread answer            stalled     --timeout-request-body      it ends
    an answer being generated   no limit here: the engine decides

A limit covers the whole head or body: one byte every minute does not extend it. The number of idle and half-open
connections is limited too: the one that has waited the longest makes room for a new one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from octavo.server_config import ServerConfig

_SWEEP_S = 1.0


class Waiting(Protocol):
    """A connection with a deadline."""

    def expire(self) -> None:
        """Its time is over."""

    def end(self) -> None:
        """Close at once: it makes room, or its client does not read."""


class Connections:
    """The deadlines. max_num_idle: most idle and half-open connections."""

    def __init__(self, config: ServerConfig, max_num_idle: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._max_num_idle = max_num_idle
        self._clock = clock
        self._idle: dict[Waiting, float] = {}  # connection -> deadline; the one that has waited longest is first
        self._stalled: dict[Waiting, float] = {}

    @property
    def num_idle(self) -> int:
        """Half-open ones included."""
        return len(self._idle)

    def waits(self, connection: Waiting, seconds: float) -> None:
        """The client must go on within this time."""
        self._idle.pop(connection, None)
        self._idle[connection] = self._clock() + seconds
        if len(self._idle) > self._max_num_idle:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.end()

    def works(self, connection: Waiting) -> None:
        """The server is at work on it."""
        self._idle.pop(connection, None)

    def stalls(self, connection: Waiting) -> None:
        """The client does not read."""
        self._stalled[connection] = self._clock() + self.config.timeout_request_body

    def flows(self, connection: Waiting) -> None:
        """The client reads again."""
        self._stalled.pop(connection, None)

    def lost(self, connection: Waiting) -> None:
        self._idle.pop(connection, None)
        self._stalled.pop(connection, None)

    async def sweep(self) -> None:
        """Runs forever. Time in which this process was stopped or too busy to read is added to all deadlines."""
        while True:
            due = self._clock() + _SWEEP_S
            await asyncio.sleep(_SWEEP_S)
            self.look(late_s=self._clock() - due)

    def look(self, late_s: float = 0.0) -> None:
        """End all connections past their deadline. late_s: how long none could be read."""
        if late_s > _SWEEP_S:
            for deadlines in (self._idle, self._stalled):
                deadlines.update({connection: deadline + late_s for connection, deadline in deadlines.items()})
        now = self._clock()
        for connection in [one for one, deadline in self._idle.items() if deadline <= now]:
            del self._idle[connection]
            connection.expire()
        for connection in [one for one, deadline in self._stalled.items() if deadline <= now]:
            self.lost(connection)
            connection.end()
