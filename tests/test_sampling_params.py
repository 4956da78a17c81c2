"""SamplingParams: every bound from both sides, every message, every alternative spelling."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

from octavo.errors import InvalidRequestError
from octavo.sampling_params import RequestOutputKind, SamplingParams

BIG_SEED = 2**63 - 1


def test_defaults_are_vllm_s() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.0, 0.0, 1.0)
    assert (params.max_tokens, params.min_tokens, params.seed, params.logprobs) == (16, 0, None, None)
    assert (params.ignore_eos, params.detokenize, params.skip_special_tokens) == (False, True, True)
    assert params.output_kind is RequestOutputKind.CUMULATIVE
    assert params.prompt_logprobs is params.logit_bias is params.allowed_token_ids is None
    assert params.truncate_prompt_tokens is params.skip_reading_prefix_cache is None
    assert not params.include_stop_str_in_output


ACCEPTED: list[dict[str, Any]] = [
    *({"n": value} for value in (1, 16384)),
    *({name: value} for name in ("presence_penalty", "frequency_penalty") for value in (-2, -2.0, 0.5, 2)),
    *({"repetition_penalty": value} for value in (1e-6, 1, 50.0, 1e6)),
    *({"temperature": value} for value in (0, 0.01, 1, 100.0, 1e6)),
    *({"top_p": value} for value in (1e-6, 0.5, 1)),
    *({"min_p": value} for value in (0, 0.5, 1)),
    *({"top_k": value} for value in (0, 1, 10**6)),
    *({"seed": value} for value in (-(2**63), 0, BIG_SEED, None)),
    *({"max_tokens": value} for value in (1, 10**9, None)),
    *({"min_tokens": value} for value in (0, 16)),
    {"min_tokens": 1000, "max_tokens": None},
    *({name: value} for name in ("logprobs", "prompt_logprobs") for value in (-1, 0, 20, None)),
    *({"truncate_prompt_tokens": value} for value in (-1, 1, 4096, None)),
    *({"skip_reading_prefix_cache": value} for value in (True, False, None)),
    {"output_kind": RequestOutputKind.DELTA},
    {"detokenize": False},
]


@pytest.mark.parametrize("options", ACCEPTED, ids=str)
def test_accepts(options: dict[str, Any]) -> None:
    params = SamplingParams(**options)
    for name, value in options.items():
        assert getattr(params, name) == value


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "n is 0, allowed is 1 to 16384"),
    ({"n": 16385}, "n is 16385, allowed is 1 to 16384"),
    ({"n": 1.0}, "n is 1.0, allowed is a whole number"),
    ({"n": True}, "n is True, allowed is a whole number"),
    ({"presence_penalty": 2.01}, "presence_penalty is 2.01, allowed is from -2 to 2"),
    ({"frequency_penalty": -2.01}, "frequency_penalty is -2.01, allowed is from -2 to 2"),
    ({"presence_penalty": "1"}, "presence_penalty is '1', allowed is a number"),
    *(
        ({"repetition_penalty": value}, f"repetition_penalty is {value}, allowed is from 1e-06 to 1e+06")
        for value in (0.0, -1, 1e-40, 9e-7, 1.1e6, 1e36, math.inf, -math.inf)
    ),
    ({"repetition_penalty": 10**400}, "repetition_penalty is a number of 1329 bits, allowed is from 1e-06 to 1e+06"),
    ({"repetition_penalty": math.nan}, "repetition_penalty is nan, allowed is a number"),
    ({"temperature": -0.1}, "temperature is -0.1, allowed is from 0 to 1e+06"),
    ({"temperature": math.inf}, "temperature is inf, allowed is from 0 to 1e+06"),
    ({"temperature": 1e-40}, "temperature is 1e-40, allowed are 0 and magnitudes from 1e-37"),
    ({"temperature": -(10**400)}, "temperature is a number of 1329 bits, allowed is from 0 to 1e+06"),
    ({"temperature": math.nan}, "temperature is nan, allowed is a number"),
    ({"temperature": None}, "temperature is None, allowed is a number"),
    ({"temperature": 1e39}, "temperature is 1e+39, allowed is from 0 to 1e+06"),
    ({"top_p": 0.0}, "top_p is 0.0, allowed is above 0 to 1"),
    ({"top_p": 1.1}, "top_p is 1.1, allowed is above 0 to 1"),
    ({"min_p": -0.1}, "min_p is -0.1, allowed is from 0 to 1"),
    ({"min_p": 1.1}, "min_p is 1.1, allowed is from 0 to 1"),
    ({"top_k": -2}, "top_k is -2, allowed is -1 to 2147483647"),
    ({"top_k": 2**31}, "top_k is 2147483648, allowed is -1 to 2147483647"),
    ({"top_k": 2.5}, "top_k is 2.5, allowed is a whole number"),
    ({"seed": 2**63}, f"seed is {2**63}, allowed is {-(2**63)} to {BIG_SEED}"),
    ({"max_tokens": 0}, "max_tokens is 0, allowed is 1 or more"),
    ({"max_tokens": 2**63}, f"max_tokens is {2**63}, allowed is 1 to {2**63 - 1}"),
    ({"logprobs": 10**400}, "logprobs is a number of 1329 bits, allowed is -1 to"),
    ({"min_tokens": -1}, "min_tokens is -1, allowed is 0 or more"),
    ({"min_tokens": 17}, "min_tokens is 17, allowed is 0 to max_tokens, which is 16: lower the one"),
    ({"min_tokens": None}, "min_tokens is None, allowed is a whole number"),
    ({"logprobs": -2}, "logprobs is -2, allowed is -1 or more"),
    ({"prompt_logprobs": False}, "prompt_logprobs is False, allowed is a whole number"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens is 0, allowed are -1 and 1 or more"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens is -2, allowed is -1 or more"),
    ({"ignore_eos": 1}, "ignore_eos is 1, allowed are True and False"),
    ({"detokenize": "no"}, "detokenize is 'no', allowed are True and False"),
    ({"skip_special_tokens": None}, "skip_special_tokens is None, allowed are True and False"),
    ({"include_stop_str_in_output": 0}, "include_stop_str_in_output is 0, allowed are True and False"),
    ({"skip_reading_prefix_cache": "x"}, "skip_reading_prefix_cache is 'x', allowed are True, False and None"),
    ({"output_kind": "delta"}, "output_kind is 'delta', allowed are the members of RequestOutputKind"),
    ({"stop": ""}, "stop is [''], allowed are strings of at least one character"),
    ({"stop": ["a", ""]}, "stop is ['a', ''], allowed are strings of at least one character"),
    ({"stop": ["a", 3]}, "stop is ['a', 3], allowed are strings of at least one character"),
    ({"stop": 3}, "stop is 3, allowed is a list of strings"),
    ({"stop": ["a"], "detokenize": False}, "stop strings need detokenize=True, got detokenize=False"),
    ({"bad_words": "abc"}, "bad_words is 'abc', allowed is a list of strings"),
    ({"bad_words": [""]}, "bad_words is [''], allowed are strings of at least one character"),
    ({"stop_token_ids": "12"}, "stop_token_ids is '12', allowed is a list of token ids"),
    ({"stop_token_ids": [-1]}, "a token id of stop_token_ids is -1, allowed is 0 or more"),
    ({"stop_token_ids": [1.5]}, "a token id of stop_token_ids is 1.5, allowed is a whole number"),
    ({"allowed_token_ids": []}, "allowed_token_ids holds 0 ids, allowed are 1 to 1024; use None"),
    ({"allowed_token_ids": range(1025)}, "allowed_token_ids holds 1025 ids, allowed are 1 to 1024"),
    ({"allowed_token_ids": ["a"]}, "a token id of allowed_token_ids is 'a', allowed is a whole number"),
    ({"logprob_token_ids": []}, "logprob_token_ids holds 0 ids, allowed are 1 to 128"),
    ({"logprob_token_ids": range(129)}, "logprob_token_ids holds 129 ids, allowed are 1 to 128; logprobs=-1"),
    ({"logprob_token_ids": "5"}, "logprob_token_ids is '5', allowed is a list of token ids"),
    ({"flat_logprobs": None}, "flat_logprobs is None, allowed are True and False"),
    ({"logit_bias": [1]}, "logit_bias is [1], allowed is a mapping of token id to number"),
    ({"logit_bias": {"x": 1}}, "a token id of logit_bias is 'x', allowed is a whole number"),
    ({"logit_bias": {"9" * 5000: 1}}, "a token id of logit_bias is '999"),
    ({"logit_bias": {3: 10**400}}, "logit_bias[3] is a number of 1329 bits, allowed is from -100 to 100"),
    ({"logit_bias": {-1: 1}}, "a token id of logit_bias is -1, allowed is 0 or more"),
    ({"logit_bias": {3: 101}}, "logit_bias[3] is 101, allowed is from -100 to 100"),
    ({"temperature": 10**400}, "temperature is a number of 1329 bits, allowed is from 0 to 1e+06"),
    ({"logit_bias": {3: None}}, "logit_bias[3] is None, allowed is a number"),
    ({"logits_processors": [3]}, "logits_processors is [3], allowed is a list of functions"),
    ({"logits_processors": print}, "logits_processors is <built-in function print>, allowed is a list of functions"),
    ({"logits_processors": "f"}, "logits_processors is 'f', allowed is a list of functions"),
    ({"repetition_detection": 2}, "repetition_detection is 2, allowed are a RepetitionDetectionParams and a dict"),
    ({"repetition_detection": {"min": 2}}, "repetition_detection holds the field 'min'"),
    ({"repetition_detection": {"max_pattern_size": 3}}, "repetition_detection.min_count is 0, allowed is 2 or more"),
    (
        {"repetition_detection": {"max_pattern_size": 1025}},
        "repetition_detection.max_pattern_size is 1025",
    ),
    (
        {"repetition_detection": {"min_pattern_size": 1}},
        "repetition_detection.min_pattern_size is 1, allowed is 0 to",
    ),
    ({"repetition_detection": {"min_count": "3"}}, "repetition_detection.min_count is '3', allowed is a whole number"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**options)
    assert str(caught.value).startswith(message)


def test_refusals_are_value_errors() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        SamplingParams(n=0)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="prompt_logprob_token_ids=2 is not supported yet: "):
        SamplingParams(prompt_logprob_token_ids=2)  # type: ignore[call-arg]
    with pytest.raises(InvalidRequestError, match="no field 'temprature'; did you mean 'temperature'"):
        SamplingParams(temprature=0)  # type: ignore[call-arg]
    with pytest.raises(InvalidRequestError, match="takes fields by name"):
        SamplingParams(0.5)  # type: ignore[misc]


def test_what_asks_for_nothing_is_accepted() -> None:
    nothing = {"best_of": None, "use_beam_search": False, "structured_outputs": None, "skip_clone": True}
    assert SamplingParams(**nothing, max_tokens=3) == SamplingParams(max_tokens=3)


def test_spellings_become_one() -> None:
    params = SamplingParams(top_k=-1, seed=-1, stop="end", temperature=1e-6)
    assert params.top_k == 0
    assert params.seed is None
    assert params.stop == ("end",)
    assert params.temperature == 0.01
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams().stop == SamplingParams().bad_words == SamplingParams().stop_token_ids == ()
    assert SamplingParams(bad_words=["x"]).bad_words == ("x",)
    assert SamplingParams(stop_token_ids={5}).stop_token_ids == (5,)
    assert SamplingParams(logit_bias={"12": 1, 3: -1}).logit_bias == {12: 1.0, 3: -1.0}


def test_numpy_s_numbers_become_python_s() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5), seed=np.int64(7), stop_token_ids=np.array([1, 2]), logit_bias={np.int32(3): 1}
    )
    assert (params.temperature, params.seed, params.stop_token_ids) == (0.5, 7, (1, 2))
    values = [params.temperature, params.seed, *params.stop_token_ids, *params.logit_bias]
    assert [type(value) for value in values] == [float, int, int, int, int]


def test_what_is_greedy_and_what_is_penalised() -> None:
    assert SamplingParams(temperature=0).is_greedy
    assert not SamplingParams(temperature=0.005).is_greedy
    assert not SamplingParams().has_penalties
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        assert SamplingParams(**{name: 0.5}).has_penalties


def test_assignment_checks_and_normalises_one_field() -> None:
    params = SamplingParams()
    params.min_tokens = 20  # type: ignore[misc]  # more than max_tokens, until that follows
    params.max_tokens = 50  # type: ignore[misc]
    params.stop = "end"  # type: ignore[misc]
    params.top_k = -1  # type: ignore[misc]
    assert (params.min_tokens, params.max_tokens, params.stop, params.top_k) == (20, 50, ("end",), 0)
    with pytest.raises(InvalidRequestError, match="temperature is -1, allowed is from 0"):
        params.temperature = -1  # type: ignore[misc]
    with pytest.raises(InvalidRequestError, match="has no field 'max_token'; did you mean 'max_tokens'"):
        params.max_token = 5  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequestError, match="watermarking=3 is not supported yet"):
        params.watermarking = 3  # type: ignore[attr-defined]
    assert params == SamplingParams(min_tokens=20, max_tokens=50, stop="end")


def test_a_clone_is_its_own_and_checked() -> None:
    params = SamplingParams(logit_bias={1: 2.0}, max_tokens=5)
    clone = params.clone()
    params.max_tokens = 7  # type: ignore[misc]
    params.logit_bias[3] = 1.0  # type: ignore[index]
    assert (clone.max_tokens, clone.logit_bias) == (5, {1: 2.0})
    params.min_tokens = 8  # type: ignore[misc]
    with pytest.raises(InvalidRequestError, match="min_tokens is 8, allowed is 0 to max_tokens, which is 7"):
        params.clone()
    params.min_tokens = 0  # type: ignore[misc]
    params.logit_bias[3] = 1000.0  # type: ignore[index]
    with pytest.raises(InvalidRequestError, match="logit_bias"):
        params.clone()


def test_copied_and_pickled() -> None:
    params = SamplingParams(temperature=0.5, stop="x", logit_bias={1: 2.0})
    assert copy.deepcopy(params) == copy.copy(params) == pickle.loads(pickle.dumps(params)) == params


def test_replaced() -> None:
    params = SamplingParams(temperature=0.5, stop="x", logit_bias={1: 2.0})
    changed = params.replace(max_tokens=3)
    assert (changed.max_tokens, changed.temperature, changed.stop, changed.logit_bias) == (3, 0.5, ("x",), {1: 2.0})
    assert params.max_tokens == 16
    assert params.replace() == params
    with pytest.raises(InvalidRequestError, match="max_tokens is 0"):
        params.replace(max_tokens=0)


def test_true_asks_for_one_alternative_as_in_vllm() -> None:
    params = SamplingParams(logprobs=True, prompt_logprobs=True)
    assert (params.logprobs, params.prompt_logprobs) == (1, 1)
    assert not isinstance(params.logprobs, bool)
