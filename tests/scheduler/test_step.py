"""When a sequence ends, and the reason that it gives."""

import pytest

from octavo.scheduler.step import find_ending
from tests.simulate import Simulator, make_request

END, STOP = 2, 50


def ending(output, max_model_len=100, **params):
    request = make_request("a", [1, 1, 1], eos_token_ids=[END], **params)
    Simulator(max_model_len=max_model_len).add(request)
    (sequence,) = request.sequences
    sequence.token_ids += output
    return find_ending(sequence)


def test_an_ordinary_token_ends_nothing():
    assert ending([9, 9]) is None


def test_the_models_end_token_has_no_name():
    assert ending([9, END]) == ("stop", None)


def test_a_stop_token_is_named():
    assert ending([9, STOP], stop_token_ids=[STOP]) == ("stop", STOP)


def test_ignore_eos_goes_on_unless_the_user_lists_the_token():
    assert ending([END], ignore_eos=True) is None
    assert ending([END], ignore_eos=True, stop_token_ids=[END]) == ("stop", END)


def test_min_tokens_come_first():
    assert ending([9, END], min_tokens=3) is None
    assert ending([9, 9, END], min_tokens=3) == ("stop", None)


@pytest.mark.parametrize(("limits", "expected"), [({"max_tokens": 3}, 3), ({"max_model_len": 5}, 2)])
def test_length(limits, expected):
    assert ending([9] * (expected - 1), **limits) is None
    assert ending([9] * expected, **limits) == ("length", None)


def test_a_stop_token_at_the_limit_is_a_stop():
    assert ending([9, 9, END], max_tokens=3) == ("stop", None)


def test_the_sequence_carries_its_ending():
    simulator = Simulator()
    request = make_request("a", [1, 2, 3], max_tokens=50, stop_token_ids=list(range(0, 1000, 10)))
    simulator.add(request)
    simulator.run()
    (sequence,) = request.sequences
    assert sequence.finish_reason == "stop"
    assert sequence.stop_reason == sequence.output_token_ids[-1]
    assert sequence.stop_reason % 10 == 0
    assert all(token % 10 for token in sequence.output_token_ids[:-1])
