"""The cost of the event log: microseconds of the engine's thread per decode step, without it, in memory, and in a file.

python -m benchmarks.recorder      256 sequences that decode; the model's work takes no time

A snapshot of the engine, with which the ring begins each of its halves, is far rarer than a step and in no median. It
is timed alone, and told as a share of the steps between two.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from octavo.cache.blocks import make_groups
from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.engine.core import EngineCore
from octavo.engine.snapshot import take_snapshot
from octavo.messages import StepPlan, StepResult
from octavo.observe.event_log import EventLog
from octavo.observe.events import EngineStarted
from octavo.observe.recorder import FlightRecorder
from octavo.scheduler.scheduler import Scheduler
from octavo.worker.runner import DoneStep
from tests.simulate import make_request

BLOCK_SIZE, CONTEXT = 16, 8192


class NoModel:
    """Draws the same token for all."""

    def submit(self, plan: StepPlan) -> DoneStep:
        return DoneStep(StepResult(plan.step_id, [5] * sum(plan.num_draws)))

    def close(self) -> None: ...


def measure(mode: str, num_seqs: int, num_steps: int, folder: Path) -> tuple[float, float, float]:
    """The median microseconds of a step, those of a snapshot, and the steps from one to the next."""
    clock, num_blocks = time.monotonic, num_seqs * CONTEXT // BLOCK_SIZE
    events = EventLog(0 if mode == "off" else 65536)
    cache = KVCache(
        num_blocks=num_blocks, block_size=BLOCK_SIZE, groups=make_groups([None]), events=events, clock=clock
    )
    config = SchedulerConfig(max_num_seqs=num_seqs)
    limits = {"max_model_len": CONTEXT, "max_num_batched_tokens": num_seqs * 2 * BLOCK_SIZE}
    core = EngineCore(Scheduler(config, cache, events=events, clock=clock, **limits), cache, NoModel(), events, clock)
    if mode != "off":
        events.start(EngineStarted(clock(), num_blocks - 1, BLOCK_SIZE, 1, 1, CONTEXT))
    recorder = None
    if mode == "file":
        recorder = FlightRecorder(events, {}, clock, lambda: folder)
        recorder.record(str(folder / "run.olog"))
    for number in range(num_seqs):
        core.add_request(make_request(str(number), [number % 7] * (10 + number % BLOCK_SIZE), max_tokens=CONTEXT - 64))
    times, was = [], len(events)
    for _ in range(num_steps // 4):  # which the ring has room for
        core.step()
    num_between = events.half * (num_steps // 4) / max(1, len(events) - was)
    for _ in range(num_steps - num_steps // 4):
        begin = time.thread_time()
        core.step()
        times.append(time.thread_time() - begin)
    if recorder is not None:
        recorder.close()
    return statistics.median(times) * 1e6, snapshot_us(core), num_between


def snapshot_us(core: EngineCore) -> float:
    times = []
    for _ in range(9):
        begin = time.thread_time()
        take_snapshot(0.0, core._scheduler, core.cache)
        times.append(time.thread_time() - begin)
    return statistics.median(times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seqs", type=int, default=256)
    parser.add_argument("--num-steps", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for mode in ("off", "memory", "file"):
            step_us, one_us, num_between = measure(mode, args.num_seqs, args.num_steps, Path(name))
            print(f"{mode:<6} {step_us:6.0f} µs a step", flush=True)
        share = one_us / (num_between * step_us)
        print(f"a snapshot takes {one_us:.0f} µs, once in {num_between:,.0f} steps: {share:.2%} of a step")
        size = (Path(name) / "run.olog").stat().st_size
        print(f"the file takes {size / args.num_steps:.0f} bytes a step")


if __name__ == "__main__":
    main()
