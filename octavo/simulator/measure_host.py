"""Measures what the scheduler takes of a step, for `octavo bench cost`: planning it, and taking its tokens.

A real core runs decodes on the real executor, whose time is taken off. So the scheduler runs as it does in service:
between steps that leave nothing of it in a processor's caches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.engine.core import EngineCore
from octavo.executor.executor import Executor
from octavo.messages import StepPlan
from octavo.observe.event_log import EventLog
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from octavo.worker.runner import DoneStep

_HOST_SEQS, _HOST_PROMPT_LEN = 32, 32
_PARAMS = SamplingParams(max_tokens=_HOST_PROMPT_LEN, ignore_eos=True, detokenize=False)


def measure_host(executor: Executor, clock: Callable[[], float] = time.perf_counter) -> tuple[float, float]:
    """Seconds of the scheduler for a step of decodes, and more for each sequence."""
    shape = executor.shape
    blocks_each = -(-2 * _HOST_PROMPT_LEN // shape.layout.block_size) * len(shape.groups)
    most = max(1, min(_HOST_SEQS, shape.limits.max_num_seqs, (shape.layout.num_blocks - 1) // blocks_each))
    one, many = (_host_seconds(executor, num_seqs, clock) for num_seqs in (1, most))
    per_seq = max(0.0, (many - one) / max(1, most - 1))
    return max(0.0, one - per_seq), per_seq


def _host_seconds(executor: Executor, num_seqs: int, clock: Callable[[], float]) -> float:
    shape, events, watched = executor.shape, EventLog(65_536), _Watched(executor, clock)
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
    core = EngineCore(scheduler, cache, watched, events, clock)
    for number in range(num_seqs):
        prompt = [(number * 7919 + place) % shape.limits.vocab_size for place in range(_HOST_PROMPT_LEN)]
        core.add_request(Request(f"{number}", prompt, _PARAMS, number, 0.0, _HOST_PROMPT_LEN))
    taken = []
    while core.has_unfinished:
        before, begin = watched.seconds, clock()
        updates = core.step()
        if len(updates) == num_seqs:
            taken.append(clock() - begin - (watched.seconds - before))
    core.step()  # its rows are free then
    return statistics.median(taken) if taken else 0.0


class _Watched:
    """An executor whose time is counted, and that keeps what it was given."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        self._executor = executor
        self._clock = clock
        self.seconds = 0.0

    def submit(self, plan: StepPlan) -> DoneStep:
        begin = self._clock()
        result = self._executor.submit(plan).result()
        self.seconds += self._clock() - begin
        return DoneStep(result)

    def close(self) -> None:
        """It is the caller's."""
