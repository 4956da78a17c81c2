"""A simulated engine: the real core, scheduler and cache, with an executor whose steps take virtual time.

    engine = SimulatedEngine(sizes, SchedulerConfig(), cost, EventLog(0))
    engine.add(request)
    updates = engine.step()          engine.now is later by what the step costs
    engine.wait_until(12.5)          nothing to do until then

    now ──host: plan──▶ │ device: the step ..... │ ──▶ now          the next step of an overlapped core is planned
                                                                    while the device is busy

A clock belongs to one engine. Whoever drives several engines steps the one whose `now` is the earliest, and lets an
idle one wait until a request comes for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

from octavo.cache.blocks import CacheGroup
from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.engine.core import EngineCore, OverlappedCore
from octavo.messages import StepPlan, StepResult
from octavo.observe.event_log import EventLog
from octavo.observe.events import EngineStarted
from octavo.request import Request
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.step import SequenceUpdate
from octavo.simulator.step_cost import StepCost, shape_of

#: what is drawn: nobody reads it, but a sequence that may stop ends with END. Prompts have other tokens.
FILLER, END, FIRST_PROMPT_TOKEN = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSizes:
    """An engine's sizes. num_blocks: with the null block. windows: of its cache groups."""

    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    is_overlapped: bool
    block_bytes: int = 0
    windows: tuple[int | None, ...] = (None,)
    enable_prefix_caching: bool = True


class VirtualClock:
    """Seconds since the simulation began; moves only forwards."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class VirtualStep:
    """A step that is done at `end`. Its result is known at once, but whoever asks for it waits."""

    __slots__ = ("_clock", "_end", "_result")

    def __init__(self, clock: VirtualClock, end: float, result: StepResult) -> None:
        self._clock = clock
        self._end = end
        self._result = result

    def result(self) -> StepResult:
        self._clock.now = max(self._clock.now, self._end)
        return self._result


class VirtualExecutor:
    """Carries plans out by the clock alone. A request's seed is the length of its answer if a token can stop it: the
    draw of that token is END."""

    def __init__(self, clock: VirtualClock, cost: StepCost) -> None:
        self._clock = clock
        self._cost = cost
        self._free_at = 0.0
        self._last_positions: dict[int, int] = {}  # row -> where its END is; only rows that may stop

    def submit(self, plan: StepPlan) -> VirtualStep:
        clock, cost, known_at = self._clock, self._cost, self._clock.now
        if plan.rows:
            shape = shape_of(plan)
            clock.now += cost.host_seconds(shape)
            self._free_at = max(clock.now, self._free_at) + cost.device_seconds(shape)
            clock.now += cost.beside_seconds(shape)
            known_at = self._free_at + cost.latency_s
        if self._last_positions or plan.new_rows:
            self._seat(plan)
        return VirtualStep(clock, known_at, self._result(plan))

    def close(self) -> None:
        self._last_positions.clear()

    def _seat(self, plan: StepPlan) -> None:
        ends = self._last_positions
        for row in plan.freed_rows:
            ends.pop(row, None)
        for new in plan.new_rows:
            if new.stop_token_ids:
                ends[new.row] = new.num_prompt_tokens + new.seed - 1
        for fork in plan.fork_rows:
            if fork.parent_row in ends:
                ends[fork.row] = ends[fork.parent_row]

    def _result(self, plan: StepPlan) -> StepResult:
        draws = plan.num_draws
        tokens = self._ending_draws(plan) if self._last_positions else [FILLER] * sum(draws)
        is_plain = draws.count(1) == len(draws)
        return StepResult(plan.step_id, tokens, [] if is_plain else [0, *accumulate(draws)])

    def _ending_draws(self, plan: StepPlan) -> list[int]:
        """A draw for each entry that has one, then for each fork."""
        ends, never = self._last_positions, 1 << 62
        columns = zip(plan.rows, plan.num_computed_tokens, plan.num_scheduled_tokens, strict=True)
        positions = {row: start + number for row, start, number in columns}
        tokens = [
            END if positions[row] >= ends.get(row, never) else FILLER
            for row, num_draws in zip(plan.rows, plan.num_draws, strict=False)
            if num_draws
        ]
        for fork in plan.fork_rows:
            tokens.append(END if positions[fork.parent_row] >= ends.get(fork.row, never) else FILLER)
        return tokens


class SimulatedEngine:
    """Owner of its clock, core and cache."""

    def __init__(
        self,
        sizes: SimulatedSizes,
        scheduler: SchedulerConfig,
        cost: StepCost,
        events: EventLog,
        *,
        check_invariants: bool = False,
    ) -> None:
        self.sizes = sizes
        self.events = events
        clock = self._clock = VirtualClock()
        cache = KVCache(
            num_blocks=sizes.num_blocks,
            block_size=sizes.block_size,
            groups=[CacheGroup((index,), window) for index, window in enumerate(sizes.windows)],
            enable_prefix_caching=sizes.enable_prefix_caching,
            events=events,
            clock=clock,
        )
        events.start(_started(sizes))
        planner = Scheduler(
            replace(scheduler, max_num_seqs=sizes.max_num_seqs),
            cache,
            max_model_len=sizes.max_model_len,
            max_num_batched_tokens=sizes.max_num_batched_tokens,
            events=events,
            clock=clock,
        )
        kind = OverlappedCore if sizes.is_overlapped else EngineCore
        parts = planner, cache, VirtualExecutor(clock, cost), events, clock
        self.core = kind(*parts, check_invariants=check_invariants)

    @property
    def now(self) -> float:
        return self._clock.now

    @property
    def has_unfinished(self) -> bool:
        return self.core.has_unfinished

    @property
    def num_used_blocks(self) -> int:
        return self.core.num_used_blocks

    def add(self, request: Request) -> None:
        """A request arrives now. Raises InvalidRequestError if it could never finish."""
        self.core.add_request(request)

    def step(self) -> list[SequenceUpdate]:
        return self.core.step()

    def wait_until(self, time: float) -> None:
        """Let time pass in which nothing runs."""
        self._clock.now = max(self._clock.now, time)


def _started(sizes: SimulatedSizes) -> EngineStarted:
    return EngineStarted(
        time=0.0,
        num_blocks=sizes.num_blocks - 1,
        block_size=sizes.block_size,
        block_bytes=sizes.block_bytes,
        num_groups=len(sizes.windows),
        max_model_len=sizes.max_model_len,
        enable_prefix_caching=sizes.enable_prefix_caching,
        windows=sizes.windows,
        max_num_seqs=sizes.max_num_seqs,
        max_num_batched_tokens=sizes.max_num_batched_tokens,
        is_overlapped=sizes.is_overlapped,
    )
