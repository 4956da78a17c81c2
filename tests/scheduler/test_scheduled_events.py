"""The events of steps share their columns while the same sequences decode, and say what the plans said."""

from __future__ import annotations

import pytest

from octavo.messages import StepPlan
from octavo.observe.events import Finished, FirstToken, Scheduled
from tests.simulate import Simulator, make_request
from tests.viz.runs import RandomRun


@pytest.mark.parametrize("seed", range(12))
def test_events_say_what_was_planned(seed: int) -> None:
    run, plans = RandomRun(seed), dict[int, tuple[tuple[int, ...], ...]]()
    scheduler = run.simulator.scheduler
    schedule = scheduler.schedule

    def noted() -> StepPlan:
        plan = schedule()
        ids = tuple(one.sequence_id for row in plan.rows for one in scheduler.sequences if one.row == row)
        plans[plan.step_id] = ids, tuple(plan.num_computed_tokens), tuple(plan.num_scheduled_tokens)
        return plan

    scheduler.schedule = noted  # type: ignore[method-assign]
    for _ in run.steps(80):
        pass
    told = [event for event in run.simulator.events if type(event) is Scheduled]
    assert {event.step: (event.sequence_ids, event.num_computed, event.num_tokens) for event in told} == plans
    assert any(event.ahead > 1 for event in told)


def test_steps_of_the_same_decodes_share_their_columns() -> None:
    simulator = Simulator(num_blocks=40)
    for number in range(4):
        simulator.add(make_request(str(number), [number] * 20, max_tokens=30))
    simulator.run([])
    told = [event for event in simulator.events if type(event) is Scheduled]
    assert len({id(event.num_before) for event in told if event.sequence_ids}) < 5
    assert told[20].num_computed == tuple(number + 1 for number in told[19].num_computed)
    assert told[20] != told[19]
    assert hash(told[20]) != hash(told[19])


def test_a_request_has_one_first_token() -> None:
    simulator = Simulator(num_blocks=12)
    for number in range(6):
        simulator.add(make_request(str(number), [number] * 40, max_tokens=50, n=1 + number % 2))
    begun = make_request("begun", [9] * 10, max_tokens=20)
    begun.begin_with((3, 4))
    simulator.add(begun)
    simulator.run([])
    firsts = [event.request_id for event in simulator.events if type(event) is FirstToken]
    ends = {event.request_id for event in simulator.events if type(event) is Finished}
    assert sorted(firsts) == sorted(ends) == ["0", "1", "2", "3", "4", "5", "begun"]
    assert not simulator.scheduler._places.awaiting_first
