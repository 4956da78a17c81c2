"""The step survives what happens inside it."""

import pytest

from octavo.cache.groups import make_groups
from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.engine.core import EngineCore
from octavo.engine.overlap import OverlappedCore
from octavo.executor.inline import InlineExecutor, ThreadedExecutor
from octavo.messages import StepPlan, StepResult
from octavo.observe.events import EventLog, StepDone
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from octavo.testing.fake_executor import FakeExecutor, generate_alone

NUM_BLOCKS, BLOCK_SIZE = 40, 8


class FaultyExecutor(FakeExecutor):
    """Carries plans out, but loses the result of some steps."""

    def __init__(self, bad_steps: set[int], windows: tuple[int | None, ...]) -> None:
        groups = make_groups(windows)
        super().__init__(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, groups=groups, max_num_seqs=8)
        self._bad_steps = bad_steps

    def execute(self, plan: StepPlan) -> StepResult:
        result = super().execute(plan)
        if plan.step_id in self._bad_steps:
            raise FloatingPointError("a kernel fell over")
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
    executor = ThreadedExecutor(worker) if is_overlapped else InlineExecutor(worker)
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


@pytest.mark.parametrize("windows", [(None,), (12, 12, None)])
def test_a_failed_step_ends_its_sequences_and_the_engine_lives_on(windows) -> None:
    core = make_core({1, 4}, windows)
    prompt = list(range(20))
    lost = [make_request("a", prompt), make_request("b", prompt), make_request("c", prompt, n=3)]
    run(core, *lost)
    assert [request.sequences[0].finish_reason for request in lost] == ["error"] * 3
    assert lost[0].sequences[0].stop_reason == "FloatingPointError: a kernel fell over"
    assert core.stats().num_used_blocks == 0
    run(core, make_request("d", prompt, n=2))  # fails at step 4, when its samples run side by side
    again = make_request("e", prompt, n=2)
    run(core, again)
    assert [sequence.output_token_ids for sequence in again.sequences] == [
        generate_alone(prompt, 6, seed=7, sample_index=index) for index in range(2)
    ]
    assert core.stats().num_used_blocks == 0


def test_what_a_failed_step_was_to_compute_is_never_found_again() -> None:
    core = make_core({1})
    prompt = list(range(30))
    run(core, make_request("a", prompt), make_request("b", [*prompt, 99]))
    after = make_request("c", prompt)
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
