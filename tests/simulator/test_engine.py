"""A simulated engine's times, tokens and memory."""

import math

import pytest

from octavo.config import SchedulerConfig
from octavo.observe.event_log import EventLog
from octavo.observe.events import Finished, StepDone
from octavo.observe.frames import frames
from octavo.simulator.drive import Driver, Outcome
from octavo.simulator.engine import SimulatedEngine, SimulatedSizes
from octavo.simulator.fleet import Fleet
from octavo.simulator.generate import TraceRecipe
from octavo.simulator.report import result_of
from octavo.simulator.requests import RequestMaker, never_repeated
from octavo.simulator.step_cost import DescribedCost, StepShape
from octavo.simulator.trace import TraceRequest

COST = DescribedCost(step_ms=10, token_us=100)


def engine(
    *, num_blocks: int = 200, num_seqs: int = 8, overlapped: bool = False, windows: tuple[int | None, ...] = (None,),
    cost: DescribedCost = COST, policy: str = "fcfs", log: int = 0,
) -> SimulatedEngine:  # fmt: skip
    sizes = SimulatedSizes(
        num_blocks=num_blocks,
        block_size=16,
        max_model_len=1024,
        max_num_seqs=num_seqs,
        max_num_batched_tokens=64,
        is_overlapped=overlapped,
        windows=windows,
    )
    config = SchedulerConfig(scheduling_policy=policy)
    return SimulatedEngine(sizes, config, cost, EventLog(log), check_invariants=True)


def driven(one: SimulatedEngine, *trace: TraceRequest) -> Outcome:
    return Driver(Fleet([one]), RequestMaker(never_repeated())).run(trace)


def asked(arrival: float | None, prompt_len: int, output_len: int, **more: object) -> TraceRequest:
    return TraceRequest(arrival=arrival, prompt_len=prompt_len, output_len=output_len, **more)


def test_one_request_takes_its_steps() -> None:
    """100 tokens in chunks of 64 and 36, then four decodes."""
    outcome = driven(engine(), asked(5.0, 100, 5))
    prefill = 0.010 + 0.0064 + 0.010 + 0.0036
    assert outcome.ttfts[0] == pytest.approx(prefill)
    assert outcome.tpots[0] == pytest.approx(0.0101)
    assert outcome.e2els[0] == pytest.approx(prefill + 4 * 0.0101)
    assert (outcome.begin, outcome.num_steps, outcome.num_output_tokens) == (5.0, 6, 5)


def test_a_request_that_comes_during_a_step_waits_for_its_end() -> None:
    outcome = driven(engine(), asked(0.0, 60, 1), asked(0.001, 64, 1))
    first, second = sorted(outcome.ttfts)
    assert first == pytest.approx(0.016)
    assert second == pytest.approx(0.016 - 0.001 + 0.0164)


def test_an_overlapped_engine_hides_the_host() -> None:
    slow_host = DescribedCost(step_ms=10, host_step_ms=4)
    trace = [asked(0.0, 10, 50)]
    plain, overlapped = (
        driven(engine(cost=slow_host, overlapped=overlapped), *trace).tpots[0] for overlapped in (False, True)
    )
    assert plain == pytest.approx(0.014)
    assert overlapped == pytest.approx(0.010)


class SlowLaunch(DescribedCost):
    """3 ms pass before the device begins a chunk, and the host then goes on launching."""

    latency_s = 0.002
    beside_s = 0.0

    def host_seconds(self, shape: StepShape) -> float:
        return 0.003 if shape.chunks else 0.0

    def beside_seconds(self, shape: StepShape) -> float:
        return self.beside_s if shape.chunks else 0.0


@pytest.mark.parametrize(("beside_s", "ttft"), [(0.0, 0.016), (0.008, 0.016), (0.020, 0.023)])
@pytest.mark.parametrize("overlapped", [False, True])
def test_a_chunk_is_known_once_it_is_launched_computed_and_copied(
    monkeypatch: pytest.MonkeyPatch, overlapped: bool, beside_s: float, ttft: float
) -> None:
    monkeypatch.setattr(SlowLaunch, "beside_s", beside_s)
    cost = SlowLaunch(step_ms=10, token_us=100)
    assert driven(engine(cost=cost, overlapped=overlapped), asked(0.0, 10, 3)).ttfts[0] == pytest.approx(ttft)


@pytest.mark.parametrize("overlapped", [False, True])
def test_an_answer_stops_where_the_trace_says(overlapped: bool) -> None:
    """Whatever the engine is told of its limit."""
    log = engine(overlapped=overlapped, log=10_000)
    outcome = driven(
        log,
        asked(0.0, 30, 7, max_tokens=500),
        asked(0.0, 40, 3, max_tokens=500, n=2),
        asked(0.0, 20, 9),
    )
    ends = [(event.reason, event.num_output_tokens) for event in log.events if isinstance(event, Finished)]
    assert sorted(ends) == [("length", 9), ("stop", 3), ("stop", 3), ("stop", 7)]
    assert (outcome.num_output_tokens, outcome.num_cut) == (22, 0)


@pytest.mark.parametrize("overlapped", [False, True])
def test_turns_find_what_was_said(overlapped: bool) -> None:
    recipe = TraceRecipe(
        num_prompts=6, turns=3, dataset="random", random_input_len=64, random_output_len=32, think_time=1.0
    )
    outcome = driven(engine(overlapped=overlapped), *recipe.requests())
    assert len(outcome.ttfts) == 6
    assert outcome.num_cached_tokens == 2 * (80 + 176)  # whole blocks of 96 - 1 and 192 - 1 tokens before each new text
    assert outcome.seconds > 2.0, "turns wait until the one before is answered and read"


def test_prompts_with_a_prefix_share_its_blocks() -> None:
    trace = [asked(float(second), 100, 2, prefix="system", prefix_len=80) for second in range(4)]
    assert driven(engine(), *trace).num_cached_tokens == 3 * 80


def test_a_request_that_can_never_run_is_counted_and_the_others_run() -> None:
    outcome = driven(engine(num_blocks=11), asked(0.0, 500, 2), asked(0.0, 20, 2), asked(0.0, 1023, 2000))
    assert (outcome.num_refused, len(outcome.ttfts)) == (2, 1)
    assert "KV blocks" in outcome.refusal


def test_a_context_that_is_too_short_cuts_the_answer() -> None:
    outcome = driven(engine(), asked(0.0, 1000, 100))
    assert (outcome.num_cut, outcome.num_output_tokens) == (1, 24)


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("windows", [(None,), (32, None)])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_all_requests_end_and_leave_nothing(overlapped: bool, windows: tuple[int | None, ...], policy: str) -> None:
    recipe = TraceRecipe(
        num_prompts=24, request_rate=40.0, dataset="random", random_input_len=90, random_output_len=60,
        random_range_ratio=0.8, prefix_len=32, num_prefixes=2, num_priorities=3, n=2, turns=2, max_tokens=150,
    )  # fmt: skip
    one = engine(num_blocks=50, overlapped=overlapped, windows=windows, policy=policy, log=1_000_000)
    outcome = driven(one, *recipe.requests())
    assert len(outcome.ttfts) + outcome.num_refused == 24
    assert one.num_used_blocks == 0
    assert not one.core.has_unfinished
    assert one.events.started is not None
    *_, last = frames(one.events.started, one.events)
    assert not any(any(table) for table in last.tables.values()) or last.running, "a replay of the log agrees"
    times = [event.time for event in one.events if isinstance(event, StepDone)]
    assert times == sorted(times)
    assert outcome.peak_blocks <= 49


def test_a_result_has_percentiles_by_request_and_by_token() -> None:
    outcome = driven(engine(), *(asked(0.0, 30, 40) for _ in range(4)))
    result = result_of(outcome, 199)
    assert result.num_requests == 4
    assert result.times_ms["itl", 50] == pytest.approx(10.4)
    assert result.requests_per_s == pytest.approx(4 / outcome.seconds)
    assert 0 < result.kv_use < result.kv_peak < 1
    assert len(result.cells()) == 12
    assert not math.isnan(sum(value or 0.0 for value in result.times_ms.values()))


def test_an_empty_result_has_no_percentiles() -> None:
    result = result_of(driven(engine(num_blocks=3), asked(0.0, 500, 2)), 2)
    assert result.num_refused == 1
    assert set(result.times_ms.values()) == {None}
