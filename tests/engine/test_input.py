"""Which requests are accepted, and the errors for the others."""

import pytest

from octavo.engine.input import InputProcessor
from octavo.errors import InvalidRequestError
from octavo.request import RequestLimits
from octavo.sampling_params import SamplingParams

LIMITS = RequestLimits(max_model_len=32, max_num_seqs=8, max_logprobs=5, vocab_size=100, eos_token_ids=(2, 7))


def request(prompt, **params):
    return InputProcessor(None, LIMITS, seed=0).process("r", prompt, SamplingParams(**params), arrival_time=0.0)


def test_token_ids_pass_as_list_tuple_or_dict() -> None:
    for prompt in ([5, 6], (5, 6), {"prompt_token_ids": [5, 6]}):
        assert request(prompt).prompt_token_ids == [5, 6]
    assert request({"prompt_token_ids": [5], "cache_salt": "tenant"}).cache_salt == "tenant"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([5, 100], "token id 100, allowed are 0 to 99"),
        ([-1], "token id -1"),
        ([1.5], "hold 1.5, allowed are whole numbers"),
        ([1] * 32, "the prompt has 32 tokens, allowed are 31"),
        ("text", "skip_tokenizer_init=True"),
        ({"prompt_embeds": 1}, "in a prompt, prompt_embeds=1 is not supported yet: prompts are text or token ids"),
        ({"promt": "x"}, "the prompt has the key 'promt'; did you mean 'prompt'"),
        ({3: "x", "y": 1}, "the prompt has the key 3; allowed are cache_salt, prompt, prompt_token_ids"),
        ({"prompt": [1]}, "the prompt dict's 'prompt' is .1., allowed is text"),
        ({"prompt_token_ids": "x"}, "the prompt dict's 'prompt_token_ids' is 'x', allowed are token ids"),
        ([[1]], "hold .1., allowed are whole numbers"),
        ([2**64], "hold 18446744073709551616, allowed are whole numbers"),
        ({"cache_salt": "x"}, "exactly one of 'prompt' and 'prompt_token_ids'"),
        ({"prompt_token_ids": [1], "cache_salt": ""}, "cache_salt is ''"),
        (b"raw", "a prompt is bytes"),
        (7, "a prompt is int"),
    ],
)
def test_bad_prompts_are_named(prompt, message) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        request(prompt)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n": 9}, "n is 9, allowed is up to max_num_seqs = 8"),
        ({"logprobs": 6}, "logprobs is 6, allowed is 0 to max_logprobs = 5"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1, allowed is 0 to max_logprobs = 5"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1"),
        ({"allowed_token_ids": [100]}, "allowed_token_ids holds token id 100"),
        ({"logit_bias": {100: 1.0}}, "logit_bias holds token id 100"),
        ({"stop_token_ids": [100]}, "stop_token_ids holds token id 100"),
        ({"stop": "x"}, "need a tokenizer"),
        ({"bad_words": ["x"]}, "need a tokenizer"),
        ({"allowed_token_ids": [7], "min_tokens": 1}, "allowed_token_ids holds only bad_words and end and stop tokens"),
        (
            {"allowed_token_ids": [2, 9], "stop_token_ids": [9], "min_tokens": 3},
            "which min_tokens=3 bans: no token could be drawn; allow another, or drop one of them",
        ),
        (
            {"stop_token_ids": range(100), "min_tokens": 1},
            "the vocabulary has only bad_words and end and stop tokens, which min_tokens=1 bans",
        ),
        ({"truncate_prompt_tokens": 32}, "truncate_prompt_tokens is 32, allowed is up to max_model_len - 1 = 31"),
    ],
)
def test_parameters_beyond_the_engine_are_named(params, message) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        request([1, 2], **params)


def test_max_tokens_is_cut_to_the_context() -> None:
    assert request([1] * 30, max_tokens=16).max_output_tokens == 2
    assert request([1] * 30, max_tokens=None).max_output_tokens == 2
    assert request([1] * 10, max_tokens=16).max_output_tokens == 16


def test_truncation_keeps_the_end() -> None:
    assert request(list(range(50)), truncate_prompt_tokens=3).prompt_token_ids == [47, 48, 49]
    assert len(request([1] * 50, truncate_prompt_tokens=-1).prompt_token_ids) == 31


def test_end_tokens_stop_unless_ignored() -> None:
    assert request([1], stop_token_ids=[9]).stop_token_ids == {2, 7, 9}
    assert request([1], stop_token_ids=[9], ignore_eos=True).stop_token_ids == {9}


def test_requests_without_a_seed_get_different_ones_and_the_engine_seed_repeats_them() -> None:
    inputs, again = (InputProcessor(None, LIMITS, seed=3) for _ in range(2))
    first, second, repeated = (
        processor.process("r", [1], SamplingParams(), 0.0).seed for processor in (inputs, inputs, again)
    )
    assert first != second
    assert first == repeated
    assert request([1], seed=5).seed == 5


@pytest.mark.parametrize(
    "params",
    [
        {"allowed_token_ids": [7]},
        {"allowed_token_ids": [7], "min_tokens": 1, "ignore_eos": True},
        {"allowed_token_ids": [7, 8], "min_tokens": 1},
        {"allowed_token_ids": [9], "stop_token_ids": [9]},
        {"stop_token_ids": range(99), "min_tokens": 1},
    ],
    ids=str,
)
def test_one_token_to_draw_is_enough(params) -> None:
    assert request([1, 2], **params).prompt_token_ids == [1, 2]
