"""PipelinedCore: an engine's core with a step in each stage of a pipeline.

    stage 0     1    2    3    4    5 ...
    stage 1          1    2    3    4 ...
    planned     1  2 |    3 |  4 |               as soon as step 1 is done, step 3 is submitted

It plans with one scheduler, which gives no sequence to a step before the result of its last one has come.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from octavo.engine.core import BegunStep, OverlappedCore
from octavo.scheduler.step import SequenceUpdate


class PipelinedCore(OverlappedCore):
    """num_stages: the most steps in flight. A fault of a step is one of its ranks', and ends the engine."""

    def __init__(self, *parts: Any, num_stages: int, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._num_stages = num_stages
        self._begun: deque[BegunStep] = deque()

    @property
    def has_unfinished(self) -> bool:
        return bool(self._begun) or super().has_unfinished

    def _step(self) -> list[SequenceUpdate]:
        """Submit steps until there is one for each stage, or nothing to compute; then take the first one's result."""
        while len(self._begun) < self._num_stages and not (self._begun and self._scheduler.awaits_all):
            if (begun := self._begin()) is None:
                break
            self._begun.append(begun)
        if not self._begun:
            return []
        return self._end(self._begun.popleft())

    def close(self) -> None:
        self._drop_begun()
        super().close()

    def _fail(self, fault: Exception) -> list[SequenceUpdate]:
        self._drop_begun()
        return super()._fail(fault)

    def _drop_begun(self) -> None:
        while self._begun:
            self._wait_out(self._begun.popleft().pending)
