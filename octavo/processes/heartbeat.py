"""A process's word to its parent that its loop turns, so that one that hangs can be told from one that works.

    loop turns      alive ── at most INTERVAL_S ──▶ alive ──▶ alive       with work or without
    a step hangs    alive ──▶ nothing: the parent ends the process when the last word's patience is over

That is the engine's; a front end's event loop says it at every interval, and nothing it does takes long. Only the
loop itself says it. A thread of its own would go on saying it while the loop waits for a GPU kernel that
never returns, or for a lock that nobody gives back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from octavo.child import Channel, Note

INTERVAL_S = 5.0
#: a cold GPU compiles kernels in its first steps, of prompts, of single tokens and of graphs: a minute is common
NUM_COMPILING_STEPS = 8
COMPILING_S = 600.0


class Heartbeat:
    """timeout_s: seconds of silence that the parent may take for a hang; 0: it is told nothing."""

    def __init__(self, channel: Channel, timeout_s: float, clock: Callable[[], float]) -> None:
        self._channel = channel
        self._timeout_s = timeout_s
        self._clock = clock
        self._interval_s = min(INTERVAL_S, timeout_s / 4)
        self._num_steps = 0
        self._next_at = 0.0

    @property
    def patience_s(self) -> float:
        """How long the next word may take at most."""
        if self._timeout_s and self._num_steps < NUM_COMPILING_STEPS:
            return max(self._timeout_s, COMPILING_S)
        return self._timeout_s

    @property
    def seconds_left(self) -> float | None:
        """Until the loop should turn again though nothing happens. None: as late as it likes."""
        return max(0.0, self._next_at - self._clock()) if self._timeout_s else None

    def turn(self) -> None:
        """The loop turns."""
        if self._timeout_s and (now := self._clock()) >= self._next_at:
            self._next_at = now + self._interval_s
            self._channel.offer(Note("alive", seconds=self.patience_s))

    def step_done(self) -> None:
        """A step came back. The one that ends the time of compiling is told at once: patience is shorter now."""
        self._num_steps += 1
        if self._num_steps == NUM_COMPILING_STEPS:
            self._next_at = 0.0


async def beat(channel: Channel, timeout_s: float) -> None:
    """A front end's, for ever."""
    while timeout_s:
        channel.offer(Note("alive", seconds=timeout_s))
        await asyncio.sleep(min(INTERVAL_S, timeout_s / 4))
