"""Messages between processes arrive unchanged."""

from dataclasses import fields
from typing import Any

import msgspec
import pytest

from octavo import PoolingParams, RepetitionDetectionParams, SamplingParams
from octavo.engine.lazy_logprobs import pack_rows
from octavo.messages import LogprobRow
from octavo.processes.transport import (
    AddRequest,
    SequenceNews,
    StepNews,
    decode_down,
    decode_up,
    encode,
    pack_request,
    unpack_request,
)
from octavo.request import Request
from octavo.structured_outputs import Thoughts

# One value that is not the default for every field that matters to the engine.
FIELDS: dict[str, Any] = {
    "n": 3,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "seed": -7,
    "stop_token_ids": (5, 6),
    "ignore_eos": True,
    "max_tokens": None,
    "min_tokens": 2,
    "logprobs": 4,
    "prompt_logprobs": 0,
    "logit_bias": {7: -2.5, 9: 100.0},
    "logprob_token_ids": (3, 1),
    "allowed_token_ids": (1, 2, 3),
    "bad_words": ("a", "bé"),
    "truncate_prompt_tokens": 11,
    "skip_reading_prefix_cache": True,
    "repetition_detection": RepetitionDetectionParams(max_pattern_size=9, min_pattern_size=2, min_count=3),
}
BEAMS = {
    "use_beam_search": True,
    "best_of": 6,
    "length_penalty": -1.5,
    "early_stopping": "never",
    "num_beam_groups": 3,
    "diversity_penalty": 0.5,
}
TEXT_ONLY = {
    "stop",
    "detokenize",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "output_kind",
    "stream_interval",
    "flat_logprobs",
    "structured_outputs",
    "thinking_token_budget",
    "logits_processors",
}


def crossed(params: SamplingParams) -> Request:
    request = Request(
        request_id="r-é",
        prompt_token_ids=[0, 1, 2**31],
        sampling_params=params,
        seed=2**64 - 1,
        arrival_time=12.25,
        max_output_tokens=9,
        priority=-3,
        cache_salt="salt",
        eos_token_ids=frozenset({2}),
        stop_token_ids=frozenset({2, 5}),
        bad_word_ids=((1,), (2, 3)),
        begun_token_ids=(7, 8),
        thoughts=Thoughts(begin=(1,), end=(2, 3), closing=(4,), is_begun=True, budget=5),
    )
    message = decode_up(encode(pack_request(4, request, {"traceparent": "00-1"})))
    assert isinstance(message, AddRequest)
    assert (message.key, message.trace_headers) == (4, {"traceparent": "00-1"})
    arrived = unpack_request(message)
    for field in fields(Request):
        if field.name != "sampling_params":
            assert getattr(arrived, field.name) == getattr(request, field.name), field.name
    return arrived


def test_every_sampling_field_crosses() -> None:
    assert {*FIELDS, *BEAMS} | TEXT_ONLY == {field.name for field in fields(SamplingParams)}, (
        "say here how a new field crosses"
    )
    for name, value in FIELDS.items():
        assert getattr(crossed(SamplingParams(**{name: value})).sampling_params, name) == value
    assert crossed(SamplingParams(**FIELDS)).sampling_params == SamplingParams(**FIELDS)
    assert crossed(SamplingParams(**BEAMS)).sampling_params == SamplingParams(**BEAMS)
    assert crossed(SamplingParams(stop=["x"])).sampling_params == SamplingParams()


def test_a_request_for_an_embedding_and_its_numbers_cross() -> None:
    params = PoolingParams(dimensions=7, use_activation=False)
    request = Request("a", [3, 4], SamplingParams(), 0, 0.0, 0, pooling_params=params)
    message = decode_up(encode(pack_request(1, request)))
    assert isinstance(message, AddRequest)
    assert unpack_request(message).pooling_params == params
    news = StepNews(1.5, [], [], [], [SequenceNews(1, 0, [], 1, "stop", pooled=b"\0\1\2\3")])
    assert decode_down(encode(news)) == news


def test_a_step_s_news_cross() -> None:
    row = LogprobRow([4, 5, 9], [-0.25, -1.5, -7.0], 1, [12])
    first = SequenceNews(1, 0, [4], 2, None, None, [row], pack_rows([row]), 16, 1, 3.5)
    last = SequenceNews(1, 1, [], 2, "stop", "the end")
    news = StepNews(1.5, [1, 2], [0, 1], [7, 8], [first, last])
    assert decode_down(encode(news)) == news


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91\x63", encode([1, "no key"]), encode({"key": 1})])
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_up(payload)
