"""A simulator: the engine's scheduler and cache, a fake executor, and steps in place of seconds.

    simulator = Simulator(num_blocks=40, config=SchedulerConfig(max_num_seqs=4))
    simulator.run([Arrival(0, make_request("a", prompt)), Arrival(5, make_request("b", other, n=3))])
    simulator.events            an event's time is the number of steps done

For tests: `checks` verifies the cache's invariants after every step, and the executor every rule of a plan. What a load
would cost in seconds is a question for `octavo/simulator/`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Listlike
from dataclasses import dataclass, replace
from typing import Any

from octavo.cache.blocks import make_groups
from octavo.cache.invariants import check
from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.lora_request import LoadedAdapter, LoRARequest
from octavo.messages import StepPlan, StepResult
from octavo.observe.event_log import EventLog
from octavo.pooling_params import PoolingParams
from octavo.request import Request, Sequence
from octavo.sampling_params import SamplingParams
from octavo.scheduler.awaited_adapters import AwaitedAdapters
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.step import SequenceUpdate
from tests.fake_executor import FakeExecutor

DEFAULT_BUDGET = 512
DEFAULT_NUM_SEQS = 256


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that arrives after `step` steps."""

    step: int
    request: Request


class Simulator:
    """An engine without a model. updates: those of all steps so far."""

    def __init__(
        self,
        *,
        num_blocks: int = 100,
        block_size: int = 16,
        windows: Listlike[int | None] = (None,),
        config: SchedulerConfig | None = None,
        max_model_len: int = 1024,
        enable_prefix_caching: bool = True,
        event_log_size: int = 100_000,
        checks: bool = False,
        run_len: Callable[[], int] | None = None,
        num_stages: int = 1,
        num_adapter_slots: int = 0,
        num_kept_adapters: int = 0,
    ) -> None:
        """num_kept_adapters: that are read in the step after they are asked for; 0: none needs to be."""
        config = config or SchedulerConfig()
        groups = make_groups(windows)
        self.num_steps = 0
        self.updates: list[SequenceUpdate] = []
        self.events = EventLog(event_log_size)
        self.cache = KVCache(
            num_blocks=num_blocks,
            block_size=block_size,
            groups=groups,
            enable_prefix_caching=enable_prefix_caching,
            events=self.events,
            clock=self._clock,
        )
        self.scheduler = Scheduler(
            replace(config, max_num_seqs=config.max_num_seqs or DEFAULT_NUM_SEQS),
            self.cache,
            max_model_len=max_model_len,
            max_num_batched_tokens=config.max_num_batched_tokens or DEFAULT_BUDGET,
            events=self.events,
            clock=self._clock,
            num_stages=num_stages,
            num_adapter_slots=num_adapter_slots,
            num_kept_adapters=num_kept_adapters,
        )
        self.executor = FakeExecutor(
            num_blocks=num_blocks,
            block_size=block_size,
            groups=groups,
            max_num_seqs=config.max_num_seqs or DEFAULT_NUM_SEQS,
            run_len=run_len,
        )
        self._checks = checks
        self._kept: set[int] = set()  # the keys of adapters
        self._reading: set[int] = set()
        self._num_stages = num_stages

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add_request(request)

    def plan(self) -> StepPlan:
        if self.scheduler.awaited is not None:
            self._read_adapters(self.scheduler.awaited)
        plan = self.scheduler.schedule()
        if self.scheduler.awaited is not None:
            assert self._kept >= {load.key for load in plan.adapters}, "a slot is filled with what workers keep"
        self._check()
        return plan

    def _read_adapters(self, awaited: AwaitedAdapters) -> None:
        """As workers that take a step to read one."""
        for key in self._reading:
            awaited.were_read(key, "")
        self._kept |= self._reading
        reads = awaited.to_read()
        self._kept.difference_update(key for read in reads for key in read.dropped)
        self._reading = {read.key for read in reads}

    def carry_out(self, plan: StepPlan) -> list[SequenceUpdate]:
        return self.take(plan, self.executor.execute(plan))

    def take(self, plan: StepPlan, result: StepResult) -> list[SequenceUpdate]:
        last_parts = [entry for entry, num in enumerate(plan.num_logits) if num and not plan.num_draws[entry]]
        updates = self.scheduler.update(plan, replace(result, pooled=dict.fromkeys(last_parts, b"numbers")))
        for update in updates:
            has_numbers = update.pooled is not None
            assert has_numbers == _ends_with_numbers(update.sequence), "numbers come with a prompt's last part"
        self._check()
        self.num_steps += 1
        self.updates += updates
        return updates

    def step(self) -> StepPlan:
        plan = self.plan()
        self.carry_out(plan)
        return plan

    def step_overlapped(self, num_steps: int) -> None:
        """Plan and execute each step before the one before it is updated, as an overlapped engine does."""
        held: tuple[StepPlan, StepResult] | None = None
        for _ in range(num_steps):
            plan = self.plan()
            result = self.executor.execute(plan)
            if held is not None:
                self.take(*held)
            held = plan, result
        if held is not None:
            self.take(*held)

    def run_pipelined(self) -> None:
        """Step until all requests have ended, with as many steps in flight as stages."""
        in_flight: deque[tuple[StepPlan, StepResult]] = deque()
        while in_flight or self.scheduler.has_unfinished:
            while len(in_flight) < self._num_stages and self.scheduler.has_unfinished:
                plan = self.plan()
                in_flight.append((plan, self.executor.execute(plan)))
            self.take(*in_flight.popleft())
            assert self.num_steps <= 10_000, f"{len(self.scheduler.sequences)} sequences after 10,000 steps"

    def run(self, arrivals: Iterable[Arrival] = (), *, max_steps: int = 10_000) -> None:
        """Step until all requests have arrived and ended; fail after `max_steps` steps."""
        coming = deque(sorted(arrivals, key=lambda arrival: arrival.step))
        awaited = self.scheduler.awaited
        while coming or self.scheduler.has_unfinished or (awaited is not None and awaited.is_busy):
            while coming and coming[0].step <= self.num_steps:
                self.add(coming.popleft().request)
            self.step()
            assert self.num_steps <= max_steps, f"{len(self.scheduler.sequences)} sequences after {max_steps} steps"

    def _check(self) -> None:
        if self._checks:
            check(self.cache, self.scheduler.sequences)

    def _clock(self) -> float:
        return float(self.num_steps)


def _ends_with_numbers(sequence: Sequence) -> bool:
    return sequence.request.pooling_params is not None and sequence.finish_reason == "stop"


def make_request(
    request_id: str,
    prompt: list[int],
    *,
    seed: int = 0,
    priority: int = 0,
    cache_salt: str | None = None,
    eos_token_ids: Iterable[int] = (),
    max_tokens: int = 16,
    adapter: int | None = None,
    **params: Any,
) -> Request:
    """A request as the engine's input side builds it; `params` are those of SamplingParams. max_tokens: 0 asks for the
    prompt's numbers, as an embedding does. adapter: the key of its adapter."""
    sampling_params = SamplingParams(max_tokens=max_tokens or 1, **params)
    end_ids = frozenset() if sampling_params.ignore_eos else frozenset(eos_token_ids)
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        sampling_params=sampling_params,
        seed=seed,
        arrival_time=0.0,
        max_output_tokens=max_tokens,
        priority=priority,
        cache_salt=cache_salt,
        eos_token_ids=frozenset(eos_token_ids),
        stop_token_ids=end_ids | frozenset(sampling_params.stop_token_ids or ()),
        pooling_params=None if max_tokens else PoolingParams(),
        adapter=None if adapter is None else LoadedAdapter(adapter, str(adapter), LoRARequest(str(adapter), adapter)),
    )
