"""Heartbeats of child processes, and the parent's watchdog that finds one that hangs.

    loop turns      alive ── at most INTERVAL_S ──▶ alive ──▶ alive       with work or without
    a step hangs    alive ──▶ silence: the parent ends the process when the patience of the last heartbeat is over

Only the loop itself sends heartbeats. A separate thread would go on sending them while the loop waits for a GPU kernel
that never returns, or for a deadlocked lock. A front end's event loop sends one at every interval: none of its work
takes long.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from octavo.channel import Channel, Note

INTERVAL_S = 5.0
#: a cold GPU compiles kernels in its first steps (prefill, decode, graph capture): a minute is common
NUM_COMPILING_STEPS = 8
COMPILING_S = 600.0


class Heartbeat:
    """timeout_s: seconds of silence after which the parent assumes a hang; 0: no heartbeats."""

    def __init__(self, channel: Channel, timeout_s: float, clock: Callable[[], float]) -> None:
        self._channel = channel
        self._timeout_s = timeout_s
        self._clock = clock
        self._interval_s = min(INTERVAL_S, timeout_s / 4)
        self._num_steps = 0
        self._next_at = 0.0

    @property
    def patience_s(self) -> float:
        """The longest time to the next heartbeat."""
        if self._timeout_s and self._num_steps < NUM_COMPILING_STEPS:
            return max(self._timeout_s, COMPILING_S)
        return self._timeout_s

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the loop must turn again even if nothing happens. None: no limit."""
        return max(0.0, self._next_at - self._clock()) if self._timeout_s else None

    def turn(self) -> None:
        """The loop turns: send a heartbeat if one is due."""
        if self._timeout_s and (now := self._clock()) >= self._next_at:
            self._next_at = now + self._interval_s
            self._channel.offer(Note("alive", seconds=self.patience_s))

    def step_done(self) -> None:
        """Count a step. After the last compiling step, send a heartbeat at once: patience is shorter now."""
        self._num_steps += 1
        if self._num_steps == NUM_COMPILING_STEPS:
            self._next_at = 0.0


async def beat(channel: Channel, timeout_s: float) -> None:
    """Send a front end's heartbeats forever."""
    import asyncio  # the parent and the engines do without it

    while timeout_s:
        channel.offer(Note("alive", seconds=timeout_s))
        await asyncio.sleep(min(INTERVAL_S, timeout_s / 4))


#: a watcher that checks this many seconds late was itself stopped (a paused terminal job or virtual machine)
OVERSLEPT_S = 1.0


class Watchdog:
    """Tells whether one process hangs. All times must come from the same clock."""

    def __init__(self) -> None:
        self.patience_s = 0.0
        self._due = math.inf
        self._rests = False

    def heard(self, now: float, patience_s: float) -> None:
        """patience_s: the longest time until the next heartbeat; 0: no limit."""
        if self._rests:
            return  # sent before the process was told to end, or killed
        self.patience_s = patience_s
        self._due = now + patience_s if patience_s else math.inf

    def rest(self) -> None:
        """The process is ending: expect no more heartbeats."""
        self._rests = True
        self._due = math.inf

    def seconds_left(self, now: float) -> float:
        """Seconds until the next heartbeat is due; infinite if none is."""
        return max(0.0, self._due - now)

    def is_over(self, now: float) -> bool:
        """Whether it hangs. A late check proves nothing: the wait starts again."""
        if now - self._due > OVERSLEPT_S:
            self._due = now + self.patience_s
        return now >= self._due
