"""What could never finish is refused at the door, in words the user can act on; what can is not."""

import pytest

from octavo.config import SchedulerConfig
from octavo.errors import ConfigError, InvalidRequestError
from octavo.testing.simulate import Simulator, make_request


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
    """The last token drawn needs no slot: 40 + 25 - 1 tokens in 4 blocks a group, fewer behind a window."""
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
