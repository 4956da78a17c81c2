"""Measures what the host adds to a step, for `octavo bench cost`: planning it, submitting it, and taking its tokens.

A real core runs decodes on the real executor, whose time is taken off. So the scheduler runs as it does in service:
between steps that leave nothing of it in a processor's caches.

    host      plan │ submit │ wait ......... │ take         an asynchronous device begins when a step of decodes is
    device                  │ step ...... │                 submitted, and its tokens are known a little after its end
                                          └──▶ latency
    host      plan │ launch │ beside │ wait │ take          it begins a chunk while the host still launches the rest
    device                  │ step ...... │
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.engine.core import EngineCore
from octavo.executor.executor import Executor
from octavo.messages import StepPlan
from octavo.observe.event_log import EventLog
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from octavo.simulator.cost_table import HostCost
from octavo.simulator.step_timer import StepTimer
from octavo.worker.runner import DoneStep

_NUM_SEQS, _PROMPT_LEN, _NUM_OUTPUT = 32, 32, 32
_NUM_PROMPTS, _LONG_PROMPT_LEN, _NUM_AFTER_PROMPT = 9, 512, 8


def measure_host(executor: Executor, timer: StepTimer, clock: Callable[[], float] = time.perf_counter) -> HostCost:
    """timer: measures the same executor."""
    core = _HostCore(executor, clock)
    most = max(1, min(_NUM_SEQS, core.num_fitting(_PROMPT_LEN + _NUM_OUTPUT)))
    one, many = (core.decodes(num_seqs) for num_seqs in (1, most))
    seq_s = max(0.0, (many.seconds - one.seconds) / max(1, most - 1))
    step_s = max(0.0, one.seconds - seq_s)
    limits = executor.shape.limits
    prompt_len = min(_LONG_PROMPT_LEN, limits.max_num_tokens, limits.max_model_len - 1)
    while prompt_len > 1 and not core.num_fitting(prompt_len + _NUM_AFTER_PROMPT):
        prompt_len //= 2
    chunk = core.prompts(prompt_len)
    token_s = max(0.0, (chunk.planning - one.planning) / prompt_len)
    if not executor.shape.is_asynchronous:
        return HostCost(step_s, seq_s, token_s)
    more_s = max(0.0, chunk.submitting - one.submitting)
    idle_s = chunk.submitting + chunk.waiting - timer.mixed(prompt_len, 0, 0)  # until the device begins
    launch_s = min(more_s, max(0.0, idle_s - one.submitting))
    latency_s = max(0.0, one.waiting - timer.decode(1, _PROMPT_LEN + _NUM_OUTPUT // 2))
    return HostCost(step_s, seq_s, token_s, launch_s, more_s - launch_s, latency_s)


@dataclass(frozen=True, slots=True)
class _Times:
    """Medians of a step's seconds. planning: with taking its tokens."""

    planning: float
    submitting: float
    waiting: float

    @property
    def seconds(self) -> float:
        return self.planning + self.submitting


class _HostCore:
    """Runs real cores on an executor, one after another."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        self._executor = executor
        self._clock = clock

    def num_fitting(self, length: int) -> int:
        """How many sequences of this length."""
        shape = self._executor.shape
        blocks_each = -(-length // shape.layout.block_size) * len(shape.groups)
        fits = length <= shape.limits.max_model_len
        return min(shape.limits.max_num_seqs, (shape.layout.num_blocks - 1) // blocks_each) if fits else 0

    def decodes(self, num_seqs: int) -> _Times:
        """Of steps in which so many sequences decode."""
        watched = _Watched(self._executor, self._clock)
        core = self._core(watched, num_seqs)
        for number in range(num_seqs):
            core.add_request(self._request(number, _PROMPT_LEN, _NUM_OUTPUT))
        found = self._run(core, watched, num_seqs)
        return found or _Times(0.0, 0.0, 0.0)

    def prompts(self, length: int) -> _Times:
        """Of steps that compute a prompt. Decodes are between them, as in service, where they are rarer."""
        watched = _Watched(self._executor, self._clock)
        core = self._core(watched, 1)
        num_output = min(_NUM_AFTER_PROMPT, self._executor.shape.limits.max_model_len - length)
        for number in range(_NUM_PROMPTS):
            core.add_request(self._request(number, length, num_output))
        return self._run(core, watched, length) or _Times(0.0, 0.0, 0.0)

    def _run(self, core: EngineCore, watched: _Watched, num_tokens: int) -> _Times | None:
        """To the end of all requests; of the steps that compute so many tokens."""
        taken: list[tuple[float, float, float]] = []
        while core.has_unfinished:
            begin = self._clock()
            core.step()
            seconds = self._clock() - begin
            if watched.num_tokens == num_tokens:
                taken.append((seconds - watched.submitting - watched.waiting, watched.submitting, watched.waiting))
        core.step()  # its rows are free then
        return _Times(*map(statistics.median, zip(*taken, strict=True))) if taken else None

    def _core(self, watched: _Watched, num_seqs: int) -> EngineCore:
        shape, clock, events = self._executor.shape, self._clock, EventLog(65_536)
        cache = KVCache(
            num_blocks=shape.layout.num_blocks,
            block_size=shape.layout.block_size,
            groups=shape.groups,
            events=events,
            clock=clock,
        )
        limits = {
            "max_model_len": shape.limits.max_model_len,
            "max_num_batched_tokens": shape.limits.max_num_tokens,
        }
        scheduler = Scheduler(SchedulerConfig(max_num_seqs=num_seqs), cache, **limits, events=events, clock=clock)
        return EngineCore(scheduler, cache, watched, events, clock)

    def _request(self, number: int, prompt_len: int, num_output: int) -> Request:
        params = SamplingParams(max_tokens=num_output, ignore_eos=True, detokenize=False)
        prompt = [(number * 7919 + place) % self._executor.shape.limits.vocab_size for place in range(prompt_len)]
        return Request(f"{number}", prompt, params, number, 0.0, num_output)


class _Watched:
    """An executor, with the seconds of its last step. A host that computes a step when it is submitted only waits."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        self._executor = executor
        self._clock = clock
        self.submitting = self.waiting = 0.0
        self.num_tokens = 0

    def submit(self, plan: StepPlan) -> DoneStep:
        begin = self._clock()
        pending = self._executor.submit(plan)
        begun = self._clock() if self._executor.shape.is_asynchronous else begin
        result = pending.result()
        self.submitting, self.waiting = begun - begin, self._clock() - begun
        self.num_tokens = sum(plan.num_scheduled_tokens)
        return DoneStep(result)

    def close(self) -> None:
        """It is the caller's."""
