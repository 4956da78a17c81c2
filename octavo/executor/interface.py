"""Executor: who carries a plan to the workers and brings the result back."""

from __future__ import annotations

from typing import Protocol

from octavo.messages import PendingStep, StepPlan
from octavo.worker.task import WorkerShape


class Executor(Protocol):
    """Runs plans in the order they are submitted. shape: what its workers found when they were made."""

    @property
    def shape(self) -> WorkerShape: ...

    def submit(self, plan: StepPlan) -> PendingStep:
        """Begin a step. Whether it runs at once, or while the caller goes on, is the executor's nature."""

    def close(self) -> None:
        """Give everything back. Further calls are errors."""
