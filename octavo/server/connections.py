"""A front end's connections: who waits for a client to go on, and for how long.

    connected, answered         idle        --timeout-keep-alive
    a head that is coming       half-open   --timeout-request-head      408
    a body that is coming       half-open   --timeout-request-body      408
    an answer nobody reads      stalled     --timeout-request-body      it ends
    an answer being made        as long as it likes: the engine decides

Time is of the whole: one byte every minute buys nothing. Idle and half-open connections are bounded in number too, and
the one that has been so for the longest makes room, so that a crowd of them keeps nobody out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from octavo.config import ServerConfig

_SWEEP_S = 1.0


class Waiting(Protocol):
    """A connection, as its time runs out."""

    def expire(self) -> None:
        """It has had its time."""

    def end(self) -> None:
        """It makes room for another one, or is not read from: at once."""


class Connections:
    """Owner of deadlines. max_num_idle: at most so many idle and half-open connections."""

    def __init__(self, config: ServerConfig, max_num_idle: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._max_num_idle = max_num_idle
        self._clock = clock
        self._idle: dict[Waiting, float] = {}  # connection -> deadline; the one that came last is last
        self._stalled: dict[Waiting, float] = {}

    @property
    def num_idle(self) -> int:
        """Half-open ones too."""
        return len(self._idle)

    def waits(self, connection: Waiting, seconds: float) -> None:
        """Its client has so long to go on."""
        self._idle.pop(connection, None)
        self._idle[connection] = self._clock() + seconds
        if len(self._idle) > self._max_num_idle:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.end()

    def works(self, connection: Waiting) -> None:
        """It is the server's turn."""
        self._idle.pop(connection, None)

    def stalls(self, connection: Waiting) -> None:
        """Its client does not read."""
        self._stalled[connection] = self._clock() + self.config.timeout_request_body

    def flows(self, connection: Waiting) -> None:
        """Its client reads again."""
        self._stalled.pop(connection, None)

    def lost(self, connection: Waiting) -> None:
        self._idle.pop(connection, None)
        self._stalled.pop(connection, None)

    async def sweep(self) -> None:
        """For ever. When this process itself was stopped, or too busy to hear its clients, they get that time back."""
        while True:
            due = self._clock() + _SWEEP_S
            await asyncio.sleep(_SWEEP_S)
            self.look(late_s=self._clock() - due)

    def look(self, late_s: float = 0.0) -> None:
        """End whoever had its time. late_s: how long nobody was heard."""
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
