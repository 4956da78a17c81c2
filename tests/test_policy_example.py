"""The example of a policy does what its guide says: most wait less, the slowest more, and a window bounds that."""

import runpy
from pathlib import Path

from octavo.scheduler.roster import RANKS, first_come
from octavo.simulator.generate import TraceRecipe

EXAMPLE = Path(__file__).parent.parent / "examples/policies/shortest_first.py"


def test_short_requests_first_shortens_the_median_wait_and_a_window_bounds_the_longest() -> None:
    example = runpy.run_path(str(EXAMPLE))
    load = TraceRecipe(num_prompts=200, request_rate=40.0)
    results = [example["simulate"](rank, load) for rank in example["POLICIES"].values()]
    first_comes, shortest, bounded = results
    assert shortest.times_ms["ttft", 50] < bounded.times_ms["ttft", 50] < first_comes.times_ms["ttft", 50]
    assert first_comes.times_ms["ttft", 99] < shortest.times_ms["ttft", 99]
    assert RANKS["fcfs"] is first_come
