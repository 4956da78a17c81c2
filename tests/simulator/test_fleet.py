"""Engines behind a router: each runs as it would alone, and the router knows nothing early."""

from __future__ import annotations

import pytest

from octavo.config import DataParallelRouting, SchedulerConfig
from octavo.observe.event_log import EventLog
from octavo.processes.router import Piece, Router, Ticket
from octavo.request import Request
from octavo.simulator.drive import Driver, Outcome
from octavo.simulator.engine import SimulatedEngine, SimulatedSizes
from octavo.simulator.fleet import Fleet
from octavo.simulator.generate import TraceRecipe
from octavo.simulator.requests import RequestMaker, never_repeated
from octavo.simulator.scenario import router_of
from octavo.simulator.step_cost import DescribedCost
from octavo.simulator.trace import TraceRequest

COST = DescribedCost(step_ms=10, token_us=100)


def engines(count: int, *, overlapped: bool = False) -> list[SimulatedEngine]:
    sizes = SimulatedSizes(
        num_blocks=100,
        block_size=16,
        max_model_len=1024,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        is_overlapped=overlapped,
    )
    return [SimulatedEngine(sizes, SchedulerConfig(), COST, EventLog(0), check_invariants=True) for _ in range(count)]


def driven(fleet: Fleet, trace: list[TraceRequest]) -> Outcome:
    return Driver(fleet, RequestMaker(never_repeated())).run(trace)


@pytest.mark.parametrize("overlapped", [False, True])
def test_engines_in_turn_serve_as_each_would_alone(overlapped: bool) -> None:
    recipe = TraceRecipe(
        num_prompts=45, request_rate=30.0, dataset="random", random_input_len=60, random_output_len=20,
        random_range_ratio=0.9, max_tokens=60,
    )  # fmt: skip
    trace = list(recipe.requests())
    three = engines(3, overlapped=overlapped)
    together = driven(Fleet(three, router_of(three, "turns")), trace)
    alone = [driven(Fleet(engines(1, overlapped=overlapped)), trace[place::3]) for place in range(3)]
    for name in ("ttfts", "tpots", "e2els", "gaps"):
        times = sorted(time for one in alone for time in getattr(one, name))
        assert sorted(getattr(together, name)) == pytest.approx(times), name
    for name in ("num_steps", "num_output_tokens", "num_prompt_tokens", "num_preemptions", "block_seconds"):
        assert getattr(together, name) == pytest.approx(sum(getattr(one, name) for one in alone)), name
    assert together.end == max(one.end for one in alone)
    assert together.peak_blocks == max(one.peak_blocks for one in alone)


class Noting(Router):
    """Writes down what it is told, and when."""

    def __init__(self, num_engines: int) -> None:
        super().__init__(num_engines)
        self.notes: list[tuple[str, float]] = []
        self.fleet: Fleet | None = None

    def _note(self, what: str) -> None:
        assert self.fleet is not None
        self.notes.append((what, self.fleet.now))

    def choose(self, pieces: list[Piece], request: Request) -> Ticket | None:  # type: ignore[override]
        self._note(f"choose {request.request_id}")
        return super().choose(pieces, request)

    def started(self, ticket: Ticket) -> None:
        self._note("started")
        super().started(ticket)

    def ended(self, ticket: Ticket, num_output_tokens: int | None = None) -> None:
        self._note("ended")
        super().ended(ticket, num_output_tokens)


def test_a_router_learns_of_a_step_when_it_ends() -> None:
    """A step of 60 tokens takes 16 ms; a request that comes meanwhile is sent before its end is known."""
    two, router = engines(2), Noting(2)
    for index in range(2):
        router.goes_up(index, 1584)
    fleet = router.fleet = Fleet(two, router)
    outcome = driven(
        fleet,
        [
            TraceRequest(arrival=0.0, prompt_len=60, output_len=1),
            TraceRequest(arrival=0.004, prompt_len=50, output_len=1),
            TraceRequest(arrival=0.0155, prompt_len=40, output_len=1),
        ],
    )
    told = [what for what, _ in router.notes]
    assert told == ["choose 0", "choose 1", "choose 2", *["started", "ended"] * 3]
    times = [0.0, 0.004, 0.0155, 0.016, 0.016, 0.019, 0.019, 0.033, 0.033]
    assert [time for _, time in router.notes] == pytest.approx(times)
    assert list(outcome.e2els) == pytest.approx([0.016, 0.015, 0.033 - 0.0155])


@pytest.mark.parametrize("routing", ["prefix", "work", "turns"])
@pytest.mark.parametrize("overlapped", [False, True])
def test_conversations_over_engines_end_and_leave_no_work(routing: DataParallelRouting, overlapped: bool) -> None:
    recipe = TraceRecipe(
        num_prompts=40, request_rate=100.0, dataset="random", random_input_len=50, random_output_len=30,
        random_range_ratio=0.9, prefix_len=48, num_prefixes=3, turns=4, think_time=0.2, n=2,
    )  # fmt: skip
    several = engines(5, overlapped=overlapped)
    router = router_of(several, routing)
    impossible = TraceRequest(arrival=0.01, prompt_len=1024, output_len=5)
    outcome = driven(Fleet(several, router), [impossible, *recipe.requests()])
    assert len(outcome.ttfts) == 40
    assert outcome.num_refused == 1
    assert [router.work(index) for index in range(5)] == [0] * 5
    assert all(one.num_used_blocks == 0 and not one.has_unfinished for one in several)
    assert min(outcome.ttfts) > 0
    assert min(outcome.gaps) > 0
