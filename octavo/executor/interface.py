"""Executor: who carries a plan to the workers and brings the result back."""

from __future__ import annotations

from typing import Protocol

from octavo.messages import PendingStep, StepPlan


class Executor(Protocol):
    """Runs plans in the order they are submitted."""

    def submit(self, plan: StepPlan) -> PendingStep:
        """Begin a step. Whether it runs at once, or while the caller goes on, is the executor's nature."""

    def close(self) -> None:
        """Give everything back. Further calls are errors."""
