"""Executor: who carries a plan to the workers and brings the result back."""

from __future__ import annotations

from typing import Protocol

from octavo.messages import StepPlan, StepResult


class Executor(Protocol):
    """One step at a time. Plans are applied in the order they are given."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step to its end."""

    def close(self) -> None:
        """Give everything back. Further calls are errors."""
