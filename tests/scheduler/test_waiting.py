"""Who may start before whom, and why everyone else waits."""

import pytest

from octavo.observe.events import Started, Waits
from tests.scheduler.simulators import prompt_of, simulator_of
from tests.simulate import make_request


def start_order(simulator):
    return [event.request_id for event in simulator.events if isinstance(event, Started)]


def reasons(simulator):
    return [(event.request_id, event.why) for event in simulator.events if isinstance(event, Waits)]


@pytest.mark.parametrize("max_bypasses", [0, 1, 3])
def test_a_large_request_is_passed_only_so_often(max_bypasses):
    """The first takes 5 of 9 blocks, the large one wants 6, a steady stream of small ones wants 1 each."""
    simulator = simulator_of(num_blocks=10, max_bypasses=max_bypasses)
    simulator.add(make_request("first", prompt_of(60), max_tokens=20), make_request("large", prompt_of(90, 100)))
    for i in range(60):
        simulator.add(make_request(f"small{i}", prompt_of(5, 7 * i), max_tokens=3))
        simulator.step()
    order = start_order(simulator)
    assert order.index("large") == 1 + max_bypasses
    simulator.run()


def test_a_bypass_needs_no_blocks_to_spare():
    simulator = simulator_of(num_blocks=10, max_bypasses=4)
    simulator.add(
        make_request("first", prompt_of(60), max_tokens=4),
        make_request("large", prompt_of(120, 100), max_tokens=4),
        make_request("small", prompt_of(5, 500), max_tokens=4),
    )
    simulator.step()
    assert start_order(simulator) == ["first", "small"]
    simulator.run()


def test_priority_comes_before_arrival():
    simulator = simulator_of(max_num_seqs=1, scheduling_policy="priority")
    for name, priority in (("low", 5), ("high", 0), ("middle", 3), ("high too", 0)):
        simulator.add(make_request(name, prompt_of(5), priority=priority, max_tokens=2))
    simulator.run()
    assert start_order(simulator) == ["high", "high too", "middle", "low"]


def test_first_come_ignores_priority():
    simulator = simulator_of(max_num_seqs=1)
    for name, priority in (("low", 5), ("high", 0)):
        simulator.add(make_request(name, prompt_of(5), priority=priority, max_tokens=2))
    simulator.run()
    assert start_order(simulator) == ["low", "high"]


def test_every_wait_is_explained_when_its_reason_changes():
    simulator = simulator_of(num_blocks=10, max_num_seqs=2, max_num_batched_tokens=64)
    simulator.add(
        make_request("a", prompt_of(64), max_tokens=10),
        make_request("b", prompt_of(90, 100), max_tokens=10),
        make_request("c", prompt_of(5, 500), max_tokens=30),
        make_request("d", prompt_of(5, 600), max_tokens=2),
    )
    simulator.run()
    assert reasons(simulator) == [
        ("b", "budget: wants 90 tokens, the step has 0 left"),
        ("c", "turn: an earlier request starts first"),
        ("d", "turn: an earlier request starts first"),
        ("b", "blocks: needs 6, 4 are available"),
        ("d", "seats: needs 1, 0 are free"),
        ("b", "seats: needs 1, 0 are free"),
    ], "c started past b, for which there were not enough blocks"


def test_a_request_for_many_samples_waits_for_its_seats():
    simulator = simulator_of(max_num_seqs=3)
    simulator.add(make_request("a", prompt_of(5), max_tokens=3), make_request("b", prompt_of(5), n=3, max_tokens=3))
    simulator.run()
    assert reasons(simulator) == [("b", "seats: needs 3, 2 are free")]
