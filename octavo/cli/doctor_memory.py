"""octavo doctor MODEL: load a model, run steps of every kind and size, and compare its memory with the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.kernels.ledger import COMPONENTS
from octavo.kernels.registry import select
from octavo.worker.plan import MemoryPlan, Planner
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


def compare(task: WorkerTask) -> Compared:
    """The worker is built and run in this process."""
    plan = Planner.of(task, select(task.backend).device).plan(task)
    worker = Worker(task)
    try:
        times = 2 if worker.shape.is_asynchronous else 1  # a graph is captured the second time
        before, layout = worker.measured(), worker.shape.layout
        for step in every_size(worker.shape.limits, layout.block_size, len(layout.groups), times):
            worker.submit(step).result()
        measured = {str(component): num_bytes for component, num_bytes in worker.measured().items()}
    finally:
        worker.close()
    if "system" in before:  # what the steps added: graphs, and the kernels that they needed
        measured["graphs"] = measured["system"] - before["system"]
        measured["system"] = before["system"]
    return Compared(_planned(plan), measured | {"KV blocks": layout.num_blocks * layout.block_bytes})


def _planned(plan: MemoryPlan) -> dict[str, int]:
    return {component: plan.ledger.of(component) for component in COMPONENTS} | {"KV blocks": plan.kv_bytes}
