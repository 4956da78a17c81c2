"""A request of better priority does not wait for worse ones that run: they are preempted, and resume later."""

import random

import pytest

from octavo.observe.events import Arrived, FirstToken, Preempted, Started, Waits
from tests.fake_tokens import generate_alone
from tests.scheduler.simulators import prompt_of, seen, simulator_of
from tests.simulate import Arrival, make_request


def engine(**options):
    return simulator_of(**{"scheduling_policy": "priority", "max_num_seqs": 3} | options)


def request(name, priority, *, place=0, length=20, max_tokens=40, **params):
    prompt = prompt_of(length, start=100 * place)
    return make_request(name, prompt, priority=priority, max_tokens=max_tokens, seed=place, **params)


def names(simulator, kind):
    return [event.request_id for event in seen(simulator, kind)]


def moment(simulator, kind, name):
    return next(event.time for event in seen(simulator, kind) if event.request_id == name)


def assert_as_if_alone(*requests):
    for one in requests:
        for sequence in one.sequences:
            expected = generate_alone(one.prompt_token_ids, one.max_output_tokens, one.seed, sequence.index)
            assert sequence.output_token_ids == expected
        assert len(one.sequences) == one.sampling_params.n


def test_when_all_seats_are_taken_by_worse_ones_the_worst_gives_way_at_once():
    simulator = engine()
    worse = [
        request(name, priority, place=place) for place, (name, priority) in enumerate([("a", 1), ("b", 5), ("c", 3)])
    ]
    better = request("now", 0, place=7, max_tokens=5)
    simulator.run([*(Arrival(0, one) for one in worse), Arrival(10, better)])
    assert moment(simulator, Started, "now") == 10.0, "in the very step it came before"
    assert names(simulator, Preempted) == ["b"]
    assert names(simulator, Started) == ["a", "c", "b", "now", "b"]
    assert_as_if_alone(*worse, better)


def test_an_equal_one_waits_and_so_does_everyone_without_priorities():
    for options, priorities in (({}, (2, 2)), ({"scheduling_policy": "fcfs"}, (2, 0))):
        simulator = engine(max_num_seqs=1, **options)
        first, second = request("first", priorities[0]), request("second", priorities[1], place=3)
        simulator.run([Arrival(0, first), Arrival(5, second)])
        assert names(simulator, Preempted) == []
        assert names(simulator, Started) == ["first", "second"]


@pytest.mark.parametrize("n", [2, 3])
def test_as_many_give_way_as_seats_are_needed_and_samples_separately(n):
    simulator = engine()
    worse = [request(name, 1, place=place) for place, name in enumerate("abc")]
    better = request("now", 0, place=7, n=n, max_tokens=5)
    simulator.run([*(Arrival(0, one) for one in worse), Arrival(10, better)])
    assert moment(simulator, Started, "now") == 10.0
    assert names(simulator, Preempted) == list("cba")[:n]
    assert_as_if_alone(*worse, better)


def test_nobody_gives_way_in_vain():
    simulator = engine()
    keeps, worse = request("keeps", 0, max_tokens=30), request("worse", 1, place=1, max_tokens=30)
    better = request("now", 0, place=7, n=3, max_tokens=5)
    simulator.run([Arrival(0, keeps), Arrival(0, worse), Arrival(5, better)])
    assert names(simulator, Preempted) == [], "a seat would still be lacking"
    assert_as_if_alone(keeps, worse, better)


def test_blocks_are_given_up_like_seats():
    simulator = engine(num_blocks=14, max_num_seqs=8)
    worse = [request(name, 1, place=place, length=60, max_tokens=20) for place, name in enumerate("ab")]
    better = request("now", 0, place=7, length=90, max_tokens=20)
    simulator.run([*(Arrival(0, one) for one in worse), Arrival(3, better)])
    assert moment(simulator, Started, "now") == 3.0
    assert names(simulator, Preempted)[0] == "b"
    assert_as_if_alone(*worse, better)


def test_a_prompt_in_chunks_leaves_the_step_to_a_better_one():
    simulator = engine(max_num_batched_tokens=16)
    worse, better = request("worse", 1, length=200), request("now", 0, place=3, length=16, max_tokens=3)
    simulator.run([Arrival(0, worse), Arrival(2, better)])
    assert moment(simulator, FirstToken, "now") == 2.0
    assert names(simulator, Preempted) == [], "there are seats and blocks for both"
    assert_as_if_alone(worse, better)


def test_two_that_come_together_both_start_and_the_better_first():
    simulator = engine()
    worse = [request(name, 5, place=place) for place, name in enumerate("abc")]
    both = [request("good", 2, place=7, max_tokens=5), request("best", 1, place=8, max_tokens=5)]
    simulator.run([*(Arrival(0, one) for one in worse), *(Arrival(10, one) for one in both)])
    assert names(simulator, Started)[3:5] == ["best", "good"]
    assert {moment(simulator, Started, one) for one in ("best", "good")} == {10.0}
    assert_as_if_alone(*worse, *both)


def test_a_stream_of_better_ones_preempts_at_most_once_each():
    simulator = engine(max_num_seqs=2)
    worse = [request(name, 9, place=place, max_tokens=60) for place, name in enumerate("ab")]
    better = [request(f"now {number}", 0, place=10 + number, max_tokens=4) for number in range(8)]
    simulator.run([*(Arrival(0, one) for one in worse), *(Arrival(5 * i + 5, one) for i, one in enumerate(better))])
    assert len(names(simulator, Preempted)) <= len(better)
    for one in better:
        assert moment(simulator, Started, one.request_id) == moment(simulator, Arrived, one.request_id)
    starts = [event.time for event in seen(simulator, Started) if event.request_id == "b"]
    losses = [event.time for event in seen(simulator, Preempted) if event.request_id == "b"]
    assert all(later - earlier >= 4 for earlier, later in zip(losses, starts[1:], strict=True)), "it does not bounce"
    assert_as_if_alone(*worse, *better)


def test_the_same_tokens_where_each_step_is_planned_before_the_one_before_it_is_known():
    simulator = engine()
    worse = [request(name, 5, place=place) for place, name in enumerate("abc")]
    better = request("now", 0, place=7, n=2, max_tokens=6)
    simulator.add(*worse)
    simulator.step_overlapped(6)
    simulator.add(better)
    simulator.step_overlapped(4)
    assert len(names(simulator, Preempted)) == 2
    simulator.run()
    assert_as_if_alone(*worse, better)


def test_one_that_gave_way_has_a_reason_why_it_waits():
    simulator = engine(max_num_seqs=1)
    simulator.run([Arrival(0, request("worse", 1)), Arrival(5, request("now", 0, place=3, max_tokens=4))])
    why = [event.why for event in seen(simulator, Waits) if event.request_id == "worse"]
    assert why[0] == "turn: a better request took the place of one that ran"


@pytest.mark.parametrize("seed", range(12))
def test_under_random_load_tokens_stay_the_same_and_preemptions_are_few(seed):
    dice = random.Random(seed)
    num_seats = dice.choice([1, 2, 4, 6])
    simulator = engine(
        max_num_seqs=num_seats,
        num_blocks=dice.choice([24, 40, 100]),
        windows=dice.choice([(None,), (40, None)]),
        max_num_batched_tokens=dice.choice([16, 64, 512]),
        schedule_conservativeness=dice.choice([0, 1]),
        enable_chunked_prefill=dice.random() < 0.7,
        enable_prefix_caching=dice.random() < 0.7,
    )
    coming = [
        request(
            f"r{number}",
            dice.randrange(4),
            place=number % 7,
            length=dice.randint(1, 16),
            max_tokens=dice.randint(1, 60),
            n=dice.choice([1, 1, 1, min(2, num_seats)]),
        )
        for number in range(30)
    ]
    requests = list(coming)
    while coming or simulator.scheduler.has_unfinished:
        for _ in range(min(len(coming), dice.choice([0, 0, 1, 3]))):
            simulator.add(coming.pop())
        if seed % 2:
            simulator.step()
        else:
            simulator.step_overlapped(dice.randint(1, 6))
        assert simulator.num_steps < 5000
    assert_as_if_alone(*requests)
    assert simulator.cache.pool.num_owned == 0
    assert len(names(simulator, Preempted)) <= 3 * len(requests)
