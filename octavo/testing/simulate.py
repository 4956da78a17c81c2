"""Drive a scheduler without a model: requests arrive at given steps, a fake executor answers.

    run = simulate(scheduler, executor, [Arrival(0, request), Arrival(5, other)])

For tests of policies at any scale, and for watching one: give the scheduler an EventLog and read it after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from octavo.messages import StepPlan, StepResult
from octavo.request import Request, Sequence
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler, SequenceUpdate


class Executes(Protocol):
    """Whatever turns a plan into its result."""

    def execute(self, plan: StepPlan) -> StepResult: ...


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that comes once `step` steps are done."""

    step: int
    request: Request


@dataclass(frozen=True, slots=True)
class SimulationRun:
    """How many steps and computed tokens it took, every update in order, and sequences as they ended."""

    num_steps: int
    num_tokens: int
    updates: list[SequenceUpdate]
    finished: list[Sequence]


def simulate(
    scheduler: Scheduler,
    executor: Executes,
    arrivals: Iterable[Arrival] = (),
    *,
    max_steps: int = 10_000,
    after_step: Callable[[StepPlan, list[SequenceUpdate]], None] | None = None,
) -> SimulationRun:
    """Step until nothing is left to come or to do. More than `max_steps` steps is a failure."""
    queue = sorted(arrivals, key=lambda arrival: arrival.step)
    num_steps = num_tokens = 0
    updates: list[SequenceUpdate] = []
    finished: list[Sequence] = []
    while queue or scheduler.has_unfinished:
        while queue and queue[0].step <= num_steps:
            scheduler.add_request(queue.pop(0).request)
        plan = scheduler.schedule()
        step_updates = scheduler.update(plan, executor.execute(plan))
        updates += step_updates
        finished += [update.sequence for update in step_updates if update.sequence.finish_reason is not None]
        num_steps += 1
        num_tokens += plan.num_tokens
        if after_step is not None:
            after_step(plan, step_updates)
        assert num_steps <= max_steps, f"not done after {max_steps} steps: {scheduler.num_waiting} still wait"
    return SimulationRun(num_steps, num_tokens, updates, finished)


def make_request(
    request_id: str,
    prompt: list[int],
    *,
    max_tokens: int = 16,
    n: int = 1,
    priority: int = 0,
    cache_salt: str | None = None,
    seed: int = 0,
    stop_token_ids: Iterable[int] = (),
    min_tokens: int = 0,
    prompt_logprobs: int | None = None,
) -> Request:
    """A request as the engine's input side would make it."""
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(
            n=n, max_tokens=max_tokens, min_tokens=min_tokens, prompt_logprobs=prompt_logprobs
        ),
        seed=seed,
        arrival_time=0.0,
        max_output_tokens=max_tokens,
        priority=priority,
        cache_salt=cache_salt,
        stop_token_ids=frozenset(stop_token_ids),
    )
