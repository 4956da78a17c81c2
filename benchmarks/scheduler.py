"""The host's time for a decode step: schedule() and update(), without a model.

    python -m benchmarks.scheduler [--num-seqs 256 1024] [--steps 400] [--no-events]

Every sequence decodes one token per step and allocates blocks as usual; nothing else happens.
The engine's target is under 1 ms for both together at 256 running sequences.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

from octavo.cache.blocks import CacheGroup, make_groups
from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.messages import StepPlan, StepResult
from octavo.observe.event_log import EventLog
from octavo.scheduler.scheduler import Scheduler
from tests.simulate import make_request

PROMPT_LEN = 100
BLOCK_SIZE = 16


def instant_result(plan: StepPlan) -> StepResult:
    """A worker that takes no time and always draws the same token."""
    return StepResult(plan.step_id, [7] * len(plan.num_draws))


def measure(num_seqs: int, num_steps: int, groups: tuple[CacheGroup, ...], event_log_size: int) -> tuple[float, float]:
    """Median seconds of schedule() and of update() over decode-only steps."""
    num_blocks = num_seqs * len(groups) * ((PROMPT_LEN + num_steps) // BLOCK_SIZE + 3)
    events = EventLog(event_log_size)
    cache = KVCache(num_blocks=num_blocks, block_size=BLOCK_SIZE, groups=groups, events=events, clock=time.monotonic)
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=num_seqs),
        cache,
        max_model_len=4096,
        max_num_batched_tokens=num_seqs * PROMPT_LEN,
        events=events,
    )
    for i in range(num_seqs):
        # unlike lengths, so that block boundaries spread over the steps as they do in service
        prompt = [(i * 7919 + position) % 50_000 for position in range(PROMPT_LEN - i % BLOCK_SIZE)]
        scheduler.add_request(make_request(str(i), prompt, max_tokens=num_steps + 2))
    plan = scheduler.schedule()
    scheduler.update(plan, instant_result(plan))
    assert scheduler.num_running == num_seqs, "every sequence decodes from here on"
    schedule_s, update_s = [], []
    for _ in range(num_steps):
        start = time.perf_counter()
        plan = scheduler.schedule()
        planned = time.perf_counter()
        result = instant_result(plan)
        executed = time.perf_counter()
        scheduler.update(plan, result)
        done = time.perf_counter()
        schedule_s.append(planned - start)
        update_s.append(done - executed)
    return median(schedule_s), median(update_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seqs", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--no-events", action="store_true")
    arguments = parser.parse_args()
    gemma = make_groups(([512] * 5 + [None]) * 3)
    print(f"{'cache':<20} {'sequences':>9} {'schedule ms':>12} {'update ms':>10} {'both ms':>8}")
    for name, groups in (("one group", make_groups([None])), (f"{len(gemma)} groups, window", gemma)):
        for num_seqs in arguments.num_seqs:
            log_size = 0 if arguments.no_events else 65_536
            schedule_s, update_s = measure(num_seqs, arguments.steps, groups, log_size)
            columns = f"{schedule_s * 1e3:>12.3f} {update_s * 1e3:>10.3f} {(schedule_s + update_s) * 1e3:>8.3f}"
            print(f"{name:<20} {num_seqs:>9} {columns}")


if __name__ == "__main__":
    main()
