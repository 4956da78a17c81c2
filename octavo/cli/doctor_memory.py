"""octavo doctor MODEL: load a model, run steps of every kind and size, and compare its memory with the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.worker.plan import planned
from octavo.worker.task import WorkerTask
from octavo.worker.warm_up import every_size
from octavo.worker.worker import Worker


@dataclass(frozen=True, slots=True)
class Compared:
    """By component, KV blocks included."""

    planned: dict[str, int]
    measured: dict[str, int]

    def facts(self) -> dict[str, Any]:
        return {"planned": self.planned, "measured": self.measured}


def compare(config: EngineConfig, *, serves: bool = False) -> Compared:
    """The worker is built and run in this process. serves: as in a WorkerTask."""
    ranks = {name: getattr(config.backend, name) for name in ("tensor_parallel_size", "pipeline_parallel_size")}
    if (name := max(ranks, key=ranks.__getitem__)) and ranks[name] > 1:
        raise ConfigError(
            f"{name} is {ranks[name]}, and the doctor measures a model in one process: leave it out, or use "
            "`octavo run MODEL --report`, which tells the first rank's memory"
        )
    expected = planned(config, serves=serves)
    worker = Worker(WorkerTask.of(config, serves=serves))
    try:
        times = 2 if worker.shape.is_asynchronous else 1  # a graph is captured the second time
        layout = worker.shape.layout
        for step in every_size(worker.shape.limits, layout.block_size, len(layout.groups), times):
            worker.submit(step).result()
        measured = {str(component): num_bytes for component, num_bytes in worker.measured().items()}
    finally:
        worker.close()
    return Compared(expected, measured | {"KV blocks": layout.num_blocks * layout.block_bytes})
