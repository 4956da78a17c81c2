"""A real engine's steps beside their prices: which kind of step the cost table has wrong, and by how much."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from octavo.executor.executor import StepExecutor
from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.simulator.cost_table import CostTable
from octavo.simulator.measured_cost import MeasuredCost
from octavo.simulator.step_cost import StepShape, shape_of


@dataclass(slots=True)
class TakenStep:
    """asked: when its submission began; submitted: when that was over. begin: when a host began to compute it, or an
    asynchronous device could: when it was submitted, or when the step before ended."""

    shape: StepShape
    asked: float
    submitted: float
    begin: float = 0.0
    end: float = 0.0
    is_chained: bool = False

    @property
    def kind(self) -> str:
        shape = self.shape
        return f"{'mixed' if shape.decodes and shape.prefill else 'chunks' if shape.prefill else 'decodes'}" + (
            ", chained" if self.is_chained else ""
        )


@dataclass(slots=True)
class WatchedStep:
    pending: PendingStep
    taken: TakenStep
    watcher: WatchedExecutor

    def result(self) -> StepResult:
        result = self.pending.result()
        self.watcher.ended(self.taken)
        return result


@dataclass(slots=True)
class WatchedExecutor:
    """An executor whose steps are timed."""

    executor: StepExecutor
    clock: Callable[[], float]
    is_asynchronous: bool
    steps: list[TakenStep] = field(default_factory=list)
    num_running: int = 0
    last_end: float = 0.0

    def submit(self, plan: StepPlan) -> PendingStep:
        asked = self.clock()
        pending = self.executor.submit(plan)
        if not plan.rows:
            return pending
        taken = TakenStep(shape_of(plan), asked, self.clock(), is_chained=self.num_running > 0)
        self.num_running += 1
        return WatchedStep(pending, taken, self)

    def ended(self, taken: TakenStep) -> None:
        taken.end = self.clock()
        if taken.is_chained:
            taken.begin = max(self.last_end, taken.submitted)
        else:
            taken.begin = taken.submitted if self.is_asynchronous else taken.asked
        self.last_end = taken.end
        self.num_running -= 1
        self.steps.append(taken)

    def close(self) -> None:
        self.executor.close()


def print_prices(steps: list[TakenStep], table: CostTable) -> None:
    """Of each kind of step: how far its price is from what it took."""
    cost = MeasuredCost(table, has_spread=False)
    kinds: dict[str, list[tuple[float, float]]] = {}
    for one in steps:
        latency_s = cost.latency_s if table.engine.is_asynchronous and not one.is_chained else 0.0
        priced = cost.device_seconds(one.shape) + latency_s
        kinds.setdefault(one.kind, []).append((1e3 * (one.end - one.begin), 1e3 * priced))
    for kind, pairs in sorted(kinds.items()):
        took, priced = (statistics.median(column) for column in zip(*pairs, strict=True))
        share = sum(one for _, one in pairs) / max(1e-9, sum(one for one, _ in pairs)) - 1
        print(f"{kind:>18}: {len(pairs):>6} steps, median {took:.2f} ms, priced {priced:.2f}; sums {share:+.1%} apart")


def write_steps(path: Path, steps: list[TakenStep]) -> None:
    """A line each: when it was asked for, submitted and ended, in microseconds, is_chained, the shape."""
    with path.open("w") as file:
        for one in steps:
            times = [round(1e6 * (when - steps[0].asked)) for when in (one.asked, one.submitted, one.end)]
            file.write(json.dumps([*times, int(one.is_chained), *one.shape]) + "\n")
