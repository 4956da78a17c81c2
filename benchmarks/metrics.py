"""The cost of metrics: microseconds per decode step, and milliseconds per scrape.

    PYTHONPATH=. python benchmarks/metrics.py [--num-seqs 256 1024] [--steps 2000]

`same`: the same sequences get tokens step after step. `changing`: in every step one ends and another joins. CPU
time of this thread is measured, not wall time: steadier on a shared machine.
"""

from __future__ import annotations

import argparse
import time

from octavo.observe.event_log import EventLog
from octavo.observe.events import (
    Arrived,
    BlocksGiven,
    BlocksPublished,
    EngineStarted,
    Event,
    Finished,
    FirstToken,
    Sampled,
    Scheduled,
    Started,
    StepDone,
)
from octavo.observe.metrics import EngineMetrics

BLOCK_SIZE = 16


def new_recorder(num_seqs: int) -> EngineMetrics:
    log = EventLog(0)
    log.start(EngineStarted(0.0, 100_000, BLOCK_SIZE, 1, 1, 4096))
    recorder = EngineMetrics(log, model_name="smollm2")
    for sequence_id in range(num_seqs):
        for event in joining(sequence_id):
            log.write(event)
    return recorder


def joining(sequence_id: int) -> list[Event]:
    request_id = str(sequence_id)
    return [
        Arrived(0.0, request_id, 100, 1, max_tokens=100),
        Started(0.1, sequence_id, request_id, 0),
        FirstToken(0.2, request_id),
    ]


def step_events(number: int, ids: tuple[int, ...]) -> list[Event]:
    """A step's events: one sequence in sixteen gets a block and publishes another."""
    now, num_seqs = number * 0.01, len(ids)
    blocks: list[Event] = []
    for sequence_id in ids[::BLOCK_SIZE]:
        blocks += [BlocksGiven(now, sequence_id, 0, (1,)), BlocksPublished(now, sequence_id, 0, 0, (1,))]
    sampled = (*ids,)  # equal to the last step's, but not the same object
    scheduled = Scheduled(now, number, ids, ids, ids, 0, 1000)
    done = StepDone(now, number, 0.0, 0.01, 0.0, num_seqs, num_seqs)
    return [*blocks, scheduled, Sampled(now, number, sampled, num_seqs), done]


def step_us(num_seqs: int, num_steps: int, *, is_changing: bool) -> float:
    """The recorder's mean time for the events of one step."""
    recorder, ids, spent = new_recorder(num_seqs), tuple(range(num_seqs)), 0.0
    for number in range(num_steps):
        events: list[Event] = []
        if is_changing:
            left, joined = ids[0], num_seqs + number
            ids = (*ids[1:], joined)
            events = [Finished(number * 0.01, left, str(left), "stop", 50), *joining(joined)]
        events += step_events(number, ids)
        begin = time.thread_time()
        for event in events:
            recorder.record(event)
        spent += time.thread_time() - begin
    return spent / num_steps * 1e6


def scrape_ms(num_scrapes: int = 100) -> float:
    recorder = new_recorder(256)
    recorder.exposition()
    begin = time.thread_time()
    for _ in range(num_scrapes):
        recorder.exposition()
    return (time.thread_time() - begin) / num_scrapes * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seqs", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    print(f"{'sequences':>9} {'same us':>9} {'changing us':>12}")
    for num_seqs in arguments.num_seqs:
        same = step_us(num_seqs, arguments.steps, is_changing=False)
        changing = step_us(num_seqs, arguments.steps, is_changing=True)
        print(f"{num_seqs:>9} {same:>9.1f} {changing:>12.1f}")
    print(f"a scrape: {scrape_ms():.2f} ms")


if __name__ == "__main__":
    main()
