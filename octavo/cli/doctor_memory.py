"""octavo doctor MODEL: load a model, run steps of every kind and size, and compare its memory with the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.config import EngineConfig
from octavo.engine.assemble import build_executor, measured
from octavo.worker.plan import planned
from octavo.worker.warm_up import every_size


@dataclass(frozen=True, slots=True)
class Compared:
    """By component, KV blocks included."""

    planned: dict[str, int]
    measured: dict[str, int]

    def facts(self) -> dict[str, Any]:
        return {"planned": self.planned, "measured": self.measured}


def compare(config: EngineConfig, *, serves: bool = False) -> Compared:
    """Of the only worker, or of the first of several ranks. serves: as in a WorkerTask."""
    expected = planned(config, serves=serves)
    executor = build_executor(config, serves=serves)
    try:
        shape = executor.shape
        times = 2 if shape.is_asynchronous else 1  # a graph is captured the second time
        for step in every_size(shape.limits, shape.layout.block_size, len(shape.layout.groups), times):
            executor.submit(step).result()
        found = measured(executor)
    finally:
        executor.close()
    return Compared(expected, found)
