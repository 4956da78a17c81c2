"""InlineExecutor: one worker in this very process; a step is a function call."""

from __future__ import annotations

from octavo.messages import StepPlan, StepResult
from octavo.worker.worker import Worker


class InlineExecutor:
    def __init__(self, worker: Worker) -> None:
        self._worker: Worker | None = worker

    def execute(self, plan: StepPlan) -> StepResult:
        assert self._worker is not None, "a closed executor runs no step"
        return self._worker.execute(plan)

    def close(self) -> None:
        self._worker = None
