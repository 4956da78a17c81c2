"""A step survives faults inside it."""

import pytest

from octavo.cache.blocks import make_groups
from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.engine.core import EngineCore, OverlappedCore
from octavo.errors import EngineDeadError
from octavo.executor.executor import ThreadExecutor
from octavo.messages import StepPlan, StepResult
from octavo.observe.event_log import EventLog
from octavo.observe.events import StepDone
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from tests.fake_executor import FakeExecutor
from tests.fake_tokens import generate_alone

NUM_BLOCKS, BLOCK_SIZE = 40, 8
POISON = 666


class FaultyExecutor(FakeExecutor):
    """Executes plans, but loses the results of some steps, and of every step that computes the poisonous token."""

    def __init__(self, bad_steps: set[int], windows: tuple[int | None, ...]) -> None:
        groups = make_groups(windows)
        super().__init__(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, groups=groups, max_num_seqs=8)
        self._bad_steps = bad_steps

    def execute(self, plan: StepPlan) -> StepResult:
        result = super().execute(plan)
        spans = zip(plan.rows, plan.num_computed_tokens, plan.num_scheduled_tokens, strict=True)
        if plan.step_id in self._bad_steps:
            raise FloatingPointError("a kernel fell over")
        if any(POISON in self.rows[row].token_ids[start : start + count] for row, start, count in spans):
            raise FloatingPointError("a kernel met poison")
        return result


def make_core(
    bad_steps: set[int], windows: tuple[int | None, ...] = (None,), *, is_overlapped: bool = False
) -> EngineCore:
    events, ticks = EventLog(1000), iter(range(10**6))
    options = {"events": events, "clock": lambda: float(next(ticks))}
    cache = KVCache(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, groups=make_groups(windows), **options)
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=8), cache, max_model_len=128, max_num_batched_tokens=64, **options
    )
    worker = FaultyExecutor(bad_steps, windows)
    executor = ThreadExecutor(worker) if is_overlapped else worker
    kind = OverlappedCore if is_overlapped else EngineCore
    return kind(scheduler, cache, executor, check_invariants=True, **options)


def make_request(name: str, prompt: list[int], n: int = 1) -> Request:
    params = SamplingParams(n=n, max_tokens=6)
    return Request(name, prompt, params, seed=7, arrival_time=0.0, max_output_tokens=6)


def run(core: EngineCore, *requests: Request) -> None:
    for request in requests:
        core.add_request(request)
    for _ in range(200):
        if not core.has_unfinished:
            return
        core.step()
    raise AssertionError("the engine never came to rest")


def alone(request: Request) -> list[list[int]]:
    return [
        generate_alone(request.prompt_token_ids, 6, seed=7, sample_index=index)
        for index in range(request.sampling_params.n)
    ]


@pytest.mark.parametrize("is_overlapped", [False, True])
@pytest.mark.parametrize("windows", [(None,), (12, 12, None)])
def test_a_fault_ends_the_sequence_it_belongs_to_and_no_other(windows, is_overlapped) -> None:
    core = make_core(set(), windows, is_overlapped=is_overlapped)
    prompt = list(range(20))
    good = [make_request("a", prompt), make_request("b", [*prompt, 99], n=3), make_request("c", prompt[:7])]
    bad = make_request("bad", [*prompt, POISON, 5])
    run(core, good[0], bad, *good[1:])
    assert [sequence.finish_reason for sequence in bad.sequences] == ["error"]
    assert bad.sequences[0].stop_reason == "FloatingPointError: a kernel met poison"
    for request in good:
        assert [sequence.output_token_ids for sequence in request.sequences] == alone(request)
    assert core.stats().num_used_blocks == 0


@pytest.mark.parametrize("is_overlapped", [False, True])
@pytest.mark.parametrize("bad_steps", [{1}, {3}, {1, 2, 9}])
def test_a_fault_that_does_not_come_back_ends_nobody_in_company(bad_steps, is_overlapped) -> None:
    core = make_core(bad_steps, is_overlapped=is_overlapped)
    requests = [make_request(name, list(range(20 + place)), n=2) for place, name in enumerate("abc")]
    run(core, *requests)
    num_ended = 0
    for request in requests:
        for sequence, expected in zip(request.sequences, alone(request), strict=False):
            num_ended += sequence.finish_reason == "error"
            assert sequence.finish_reason == "error" or sequence.output_token_ids == expected
    assert num_ended <= len(bad_steps) - 1, "only who fails alone is ended"
    assert core.stats().num_used_blocks == 0


def test_a_worker_that_always_fails_ends_everyone_and_never_loops() -> None:
    core = make_core(set(range(1000)))
    requests = [make_request(name, list(range(9)), n=2) for name in "abc"]
    run(core, *requests)
    assert {sequence.finish_reason for request in requests for sequence in request.sequences} == {"error"}
    assert core.stats().num_used_blocks == 0


def test_what_a_failed_step_was_to_compute_is_never_found_again() -> None:
    core = make_core({1})
    prompt = list(range(30))
    run(core, make_request("a", prompt))
    after = make_request("b", prompt)
    run(core, after)
    assert after.num_cached_tokens == 0
    assert after.sequences[0].output_token_ids == generate_alone(prompt, 6, seed=7, sample_index=0)


def test_every_step_that_worked_is_recorded_with_its_cost() -> None:
    core = make_core(set())
    run(core, make_request("a", [1, 2, 3]))
    steps = [event for event in core._events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6]
    assert [event.num_tokens for event in steps] == [3, 1, 1, 1, 1, 1]
    assert all(event.schedule_s > 0 and event.execute_s > 0 and event.update_s > 0 for event in steps)


@pytest.mark.parametrize("is_overlapped", [False, True])
def test_a_device_that_is_lost_ends_the_engine(is_overlapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(self: FaultyExecutor, plan: StepPlan) -> StepResult:
        raise EngineDeadError("the GPU cannot be used by this process any more")

    monkeypatch.setattr(FaultyExecutor, "execute", lose)
    core = make_core(set(), is_overlapped=is_overlapped)
    with pytest.raises(EngineDeadError, match="cannot be used"):
        run(core, make_request("a", [1, 2, 3]))
