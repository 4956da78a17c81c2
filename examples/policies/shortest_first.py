"""A scheduling policy of one's own, tried in the simulator: short requests first.

    python examples/policies/shortest_first.py --svg policies.svg

A policy is a rank: the lowest goes first, the highest is preempted. The last number is the arrival, so that no two
are equal. This file puts its ranks in place of first come, first served, in this process only; docs/guides/new-idea.md
says which lines make a policy an option of the engine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from octavo.config import SchedulerConfig
from octavo.observe.event_log import EventLog
from octavo.pictures.picture import svg
from octavo.request import Sequence
from octavo.scheduler.roster import RANKS, Rank, first_come
from octavo.simulator.drive import Driver
from octavo.simulator.engine import SimulatedEngine, SimulatedSizes
from octavo.simulator.fleet import Fleet
from octavo.simulator.generate import TraceRecipe
from octavo.simulator.plot import draw
from octavo.simulator.report import HEADINGS, Result, result_of
from octavo.simulator.requests import RequestMaker, never_repeated
from octavo.simulator.step_cost import described_cost

SIZES = SimulatedSizes(
    num_blocks=2000, block_size=16, max_model_len=8192, max_num_seqs=32, max_num_batched_tokens=2048, is_overlapped=True
)
COST = "step_ms=6,token_us=20,context_ns=40"


def shortest_first(sequence: Sequence) -> Rank:
    """The fewest tokens, of prompt and limit together. A long request may wait for as long as short ones arrive."""
    return (sequence.max_len, sequence.sequence_id)


def shortest_of_64(sequence: Sequence) -> Rank:
    """The same among each 64 that arrive one after another: later ones cannot pass."""
    return (sequence.sequence_id // 64, *shortest_first(sequence))


POLICIES: dict[str, Callable[[Sequence], Rank]] = {
    "first come": first_come,
    "shortest first": shortest_first,
    "shortest of 64": shortest_of_64,
}


def simulate(rank: Callable[[Sequence], Rank], load: TraceRecipe) -> Result:
    """The real scheduler over a load, with this rank."""
    before, RANKS["fcfs"] = RANKS["fcfs"], rank
    try:
        engine = SimulatedEngine(SIZES, SchedulerConfig(), described_cost(COST), EventLog(0))
        outcome = Driver(Fleet([engine]), RequestMaker(never_repeated())).run(load.requests())
        return result_of(outcome, SIZES.num_blocks - 1)
    finally:
        RANKS["fcfs"] = before


def main() -> None:
    parser = argparse.ArgumentParser(description="compare scheduling policies in the simulator")
    parser.add_argument("--svg", type=Path, help="draw the latencies")
    parser.add_argument("--num-prompts", type=int, default=600)
    parser.add_argument("--request-rate", type=float, default=14.0)
    args = parser.parse_args()
    load = TraceRecipe(num_prompts=args.num_prompts, request_rate=args.request_rate)
    results = [simulate(rank, load) for rank in POLICIES.values()]
    print("policy", *HEADINGS, sep=" | ")
    for name, result in zip(POLICIES, results, strict=True):
        print(name, *result.cells(), sep=" | ")
    if args.svg:
        args.svg.write_text(svg(draw(list(POLICIES), results, "Policies, simulated")), encoding="utf-8")


if __name__ == "__main__":
    main()
