"""The answer to those who watch an engine's memory, made at most once a second however many they are."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from octavo.engine.core import EngineCore

INTERVAL_S = 0.8


class WatchedMemory:
    """JSON of a MemoryNow. Only the engine's thread asks."""

    def __init__(self, core: EngineCore, clock: Callable[[], float] = time.monotonic) -> None:
        self._core = core
        self._clock = clock
        self._made_at = float("-inf")
        self._answer = b""

    def answer(self) -> bytes:
        if (now := self._clock()) >= self._made_at + INTERVAL_S:
            self._made_at, self._answer = now, msgspec.json.encode(self._core.memory_now())
        return self._answer
