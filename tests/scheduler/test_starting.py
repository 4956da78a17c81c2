"""A request that could never finish is refused; one that starts leaves blocks for the growth of those that run."""

import pytest

from octavo.config import SchedulerConfig
from octavo.errors import ConfigError, InvalidRequestError
from octavo.observe.events import Preempted, Started, Waits
from tests.scheduler.simulators import prompt_of, seen, simulator_of
from tests.simulate import Arrival, Simulator, make_request


def start_steps(simulator):
    return {event.request_id: event.time for event in seen(simulator, Started)}


def prompts_of_two_blocks(number, **options):
    return [make_request(str(i), prompt_of(32, 100 * i), **options) for i in range(number)]


@pytest.mark.parametrize(
    ("conservativeness", "num_at_once"), [(0, 6), (0.5, 4), (1, 3), (100, 1)], ids=["off", "half", "whole", "far"]
)
def test_as_many_start_as_will_fit_when_they_are_long(conservativeness, num_at_once):
    """12 blocks; a prompt takes 2, a whole sequence 4: six could start, but only three finish without preemption."""
    simulator = simulator_of(num_blocks=13, schedule_conservativeness=conservativeness)
    simulator.add(*prompts_of_two_blocks(8, max_tokens=32))
    simulator.step()
    assert simulator.scheduler.num_running == num_at_once
    simulator.run()
    assert bool(seen(simulator, Preempted)) == (conservativeness < 1)


def test_why_one_waits_names_what_is_kept():
    simulator = simulator_of(num_blocks=13)
    simulator.add(*prompts_of_two_blocks(4, max_tokens=32))
    simulator.step()
    (waits,) = seen(simulator, Waits)
    assert waits.why == "blocks: needs 2 and 8 for its growth and that of those who run, 6 are available"


def test_samples_to_come_grow_too():
    """Four samples of a one-block prompt share its block and take one block each: five of the seven."""
    simulator = simulator_of(num_blocks=8, max_num_batched_tokens=16)
    simulator.add(make_request("a", prompt_of(16, 900), n=4, max_tokens=17), *prompts_of_two_blocks(2, max_tokens=2))
    simulator.run()
    assert not seen(simulator, Preempted)
    starts = start_steps(simulator)
    assert starts["a"] == 0
    assert min(starts["0"], starts["1"]) >= 16, "the samples' last step leaves nothing free before"


def test_one_that_may_end_early_is_expected_to_end_as_the_recent_ones_did():
    stops = list(range(1000))  # any token ends it
    early = [make_request(f"early{i}", prompt_of(16, 50 * i), max_tokens=320, stop_token_ids=stops) for i in range(3)]
    simulator = simulator_of(num_blocks=25)
    simulator.run([Arrival(0, one) for one in early])
    assert {len(one.sequences[0].output_token_ids) for one in early} == {1}
    late = [make_request(f"late{i}", prompt_of(16, 50 * i), max_tokens=320, stop_token_ids=[2000]) for i in range(12)]
    simulator.add(*late)
    simulator.step()
    assert simulator.scheduler.num_running == 12, "max_tokens would need 21 blocks each, what is expected is one token"


def test_nothing_is_expected_before_anybody_ended():
    simulator = simulator_of(num_blocks=13)
    simulator.add(*prompts_of_two_blocks(6, max_tokens=150, stop_token_ids=[2000]))
    simulator.step()
    assert simulator.scheduler.num_running == 6


def test_min_tokens_is_expected_of_one_that_may_end():
    simulator = simulator_of(num_blocks=13)
    simulator.add(*prompts_of_two_blocks(6, max_tokens=150, stop_token_ids=[2000], min_tokens=32))
    simulator.step()
    assert simulator.scheduler.num_running == 3


@pytest.mark.parametrize(("windows", "num_growing"), [((None,), 1), ((None, 16), 1), ((16,), 0)])
def test_only_groups_without_a_window_grow(windows, num_growing):
    simulator = simulator_of(num_blocks=25, windows=windows)
    simulator.add(*prompts_of_two_blocks(9, max_tokens=32))
    simulator.step()
    assert simulator.cache.num_blocks_to_grow(33) == 3 * num_growing
    simulator.run()
    assert not seen(simulator, Preempted)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_factor_that_is_no_number_is_refused(value):
    with pytest.raises(ConfigError, match=rf"schedule_conservativeness is {value}, allowed is (0 or more|a number)"):
        SchedulerConfig(schedule_conservativeness=value)


def test_what_ends_before_makes_room_for_what_grows_later():
    """The three take 5, 6 and 4 of 13 blocks in the end; but "short" ends before "long" has grown."""
    simulator = simulator_of(num_blocks=14)
    short, long = (make_request(n, prompt_of(p, p), max_tokens=m) for n, p, m in (("short", 64, 2), ("long", 32, 64)))
    simulator.add(short, long, make_request("next", prompt_of(32, 400), max_tokens=32))
    simulator.run()
    assert start_steps(simulator) == {"short": 0, "long": 0, "next": 1}
    assert not seen(simulator, Preempted)


@pytest.mark.parametrize("conservativeness", [0, 1])
def test_a_prompt_in_chunks_keeps_the_blocks_of_the_chunks_to_come(conservativeness):
    """One has taken 1 of its 6 blocks when the other, which needs 5, asks for some; there are 8 in all."""
    options = {"max_num_batched_tokens": 32, "long_prefill_token_threshold": 16}
    simulator = simulator_of(num_blocks=9, schedule_conservativeness=conservativeness, **options)
    simulator.add(make_request("a", prompt_of(96), max_tokens=1), make_request("b", prompt_of(80, 500), max_tokens=1))
    simulator.run()
    assert start_steps(simulator) == {"a": 0, "b": 6}
    assert not seen(simulator, Preempted)


# A request that could never finish is refused, with a message that the user can act on; others are not


def refusal(request, config=None, **options):
    simulator = Simulator(config=config, **options)
    with pytest.raises(InvalidRequestError) as caught:
        simulator.add(request)
    assert not simulator.scheduler.has_unfinished
    return str(caught.value)


def test_an_empty_prompt():
    assert "one token or more" in refusal(make_request("a", []))


def test_a_prompt_as_long_as_the_model_can_read():
    message = refusal(make_request("a", [1] * 64), max_model_len=64)
    assert "64 prompt tokens" in message
    assert "allowed are 63" in message


def test_more_samples_than_seats():
    message = refusal(make_request("a", [1], n=5), SchedulerConfig(max_num_seqs=4))
    assert "n=5" in message
    assert "max_num_seqs=4" in message


def test_a_prompt_over_the_budget_without_chunks():
    config = SchedulerConfig(enable_chunked_prefill=False, max_num_batched_tokens=32)
    message = refusal(make_request("a", [1] * 33), config)
    assert "33 prompt tokens" in message
    assert "max_num_batched_tokens" in message


def test_a_request_larger_than_the_pool():
    message = refusal(make_request("a", [1] * 40, max_tokens=26), num_blocks=5)
    assert "needs 5 KV blocks" in message
    assert "the pool has 4" in message
    assert "max_tokens" in message


def test_windows_that_would_fit_in_smaller_steps():
    request = make_request("a", [1] * 200, max_tokens=10)
    config = SchedulerConfig(max_num_batched_tokens=128)
    assert "lower max_num_batched_tokens" in refusal(request, config, windows=(20,), num_blocks=6)


def test_a_request_id_in_use():
    simulator = Simulator()
    simulator.add(make_request("a", [1, 2]))
    with pytest.raises(InvalidRequestError, match="'a' is in use"):
        simulator.add(make_request("a", [1, 2]))
    simulator.run()
    simulator.add(make_request("a", [1, 2]))


@pytest.mark.parametrize("windows", [(None,), (20,), (20, None), (20, 20, 20, None)])
@pytest.mark.parametrize("n", [1, 4])
def test_what_just_fits_finishes(windows, n):
    """The last token drawn needs no slot: 40 + 25 - 1 tokens in 4 blocks per group, fewer with a window."""
    request = make_request("a", list(range(40)), max_tokens=25, n=n)
    config = SchedulerConfig(max_num_batched_tokens=16)
    num_blocks = 1 + Simulator(windows=windows).cache.max_blocks(64, chunk_len=16)
    simulator = Simulator(windows=windows, num_blocks=num_blocks, config=config, checks=True)
    simulator.add(request)
    simulator.run()
    assert [sequence.num_output_tokens for sequence in request.sequences] == [25] * n


def test_a_threshold_without_chunks_names_both_options():
    config = SchedulerConfig(enable_chunked_prefill=False, long_prefill_token_threshold=8)
    with pytest.raises(ConfigError, match=r"long_prefill_token_threshold is 8 and enable_chunked_prefill is off"):
        Simulator(config=config)
