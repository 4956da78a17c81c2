"""Log-probabilities of tokenizers whose tokens are not texts: spaces, parts of characters, places in the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.logprobs import Logprob, TokenLogprobs
from octavo.sampling_params import SamplingParams
from octavo.server.generation import Generation
from octavo.server.logprobs import chat_logprobs, completion_logprobs
from octavo.server.openai_calls import Call
from octavo.text.tokenizer import Tokenizer
from octavo.text.tokenizer_parts import TokenizerParts
from tests.text import tokenizers

KINDS = {
    "byte-level": Tokenizer(TokenizerParts(tokenizers.byte_level())),
    "byte-fallback": Tokenizer(TokenizerParts(tokenizers.byte_fallback())),
    "metaspace": Tokenizer(TokenizerParts(tokenizers.metaspace())),
}
FALLBACK = KINDS["byte-fallback"]
OPTIONS: dict[str, Any] = {"as_token_ids": False, "has_token_ids": False, "has_usage": False, "has_usage_always": False}


def call_of(tokenizer: Tokenizer, params: SamplingParams | None = None, num_top: int = 5) -> Call:
    return Call(
        **OPTIONS,
        id="cmpl-1",
        model="tiny",
        created=1,
        generation=Generation(request_id="cmpl-1", prompts=[[1]], params=params or SamplingParams()),
        num_top=num_top,
        token_text=tokenizer.token_to_str,
        token_bytes=tokenizer.token_bytes,
        text_stream=tokenizer.stream,
        stream_interval=1,
        num_logprobs=0,
    )


def rows(tokenizer: Tokenizer, ids: list[int], others: tuple[int, ...] = ()) -> list[TokenLogprobs]:
    return [
        {one: Logprob(-1.0 - rank, rank + 1, tokenizer.token_to_str(one)) for rank, one in enumerate((chosen, *others))}
        for chosen in ids
    ]


@dataclass(frozen=True)
class Told:
    text: str
    tokens: list[str]
    offsets: list[int]


def tell(tokenizer: Tokenizer, prompt: list[int], answer: list[int], echo: str | None) -> Told:
    call = call_of(tokenizer)
    stream = tokenizer.stream(True, prompt)
    text = (echo or "") + "".join(stream.push(one) for one in answer) + stream.finish()
    parts = [completion_logprobs(call, answer, rows(tokenizer, answer), call.answer_place(prompt, echo))]
    if echo is not None:
        told = completion_logprobs(call, prompt, rows(tokenizer, prompt), call.echo_place(prompt, echo))
        parts.insert(0, told)
    tokens = [token for part in parts for token in part.tokens]
    return Told(text, tokens, [offset for part in parts for offset in part.text_offset])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(text=st.text("ab é€", min_size=1, max_size=12), at=st.integers(0, 12), has_echo=st.booleans())
def test_each_token_is_where_its_offset_says(kind: str, text: str, at: int, has_echo: bool) -> None:
    tokenizer = KINDS[kind]
    ids = tokenizer.encode(text)
    prompt, answer = ids[:at], ids[at:]
    told = tell(tokenizer, prompt, answer, tokenizer.settled_text(prompt) if has_echo else None)
    assert len(told.offsets) == len(ids if has_echo else answer)
    assert told.offsets == sorted(told.offsets)
    for index, (token, offset) in enumerate(zip(told.tokens, told.offsets, strict=True)):
        if token.startswith("bytes:"):
            continue
        is_first = index == 0 and offset == 0  # the front of a text loses a space
        assert told.text[offset:].startswith((token, token.lstrip(" ")) if is_first else token)


def test_special_tokens_that_the_text_does_not_show_take_no_room() -> None:
    ids = [FALLBACK.convert_tokens_to_ids([one])[0] or 0 for one in ("<s>", "▁a", "▁ab", "</s>", "▁a")]
    told = tell(FALLBACK, ids[:2], ids[2:], "a")
    assert told == Told("a ab a", ["<s>", " a", " ab", "</s>", " a"], [0, 0, 1, 4, 4])


def test_an_echoed_text_with_special_tokens_in_it_is_found_too() -> None:
    ids = [FALLBACK.convert_tokens_to_ids([one])[0] or 0 for one in ("</s>", "▁a")]
    assert tell(FALLBACK, ids, [ids[1]], "</s> a").offsets == [0, 4, 6]


def test_alternatives_that_differ_by_a_space_or_in_bytes_have_keys_of_their_own() -> None:
    tokens = ["▁a", "a", "<0xE2>", "<0x82>"]
    ids = [one or 0 for one in FALLBACK.convert_tokens_to_ids(tokens)]
    call = call_of(FALLBACK)
    told = completion_logprobs(call, ids[:1], rows(FALLBACK, ids[:1], tuple(ids[1:])), call.answer_place([], None))
    assert told.top_logprobs == [{" a": -1.0, "a": -2.0, "bytes:\\xe2": -3.0, "bytes:\\x82": -4.0}]


def test_numbers_that_json_does_not_have_are_told_as_some_that_it_has() -> None:
    (a,) = FALLBACK.convert_tokens_to_ids(["a"])
    assert a is not None
    inf = float("inf")
    for number, expected in ((inf, 9999.0), (-inf, -9999.0), (float("nan"), -9999.0), (41.5, 41.5)):
        call = call_of(FALLBACK)
        told = completion_logprobs(call, [a], [{a: Logprob(number, 1, "a")}], call.answer_place([], None))
        assert told.token_logprobs == [expected]


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@settings(max_examples=50, deadline=None)
@given(answer=st.text("ab é€\U0001f44b", max_size=12))
def test_bytes_of_a_chat_join_to_its_text(kind: str, answer: str) -> None:
    tokenizer = KINDS[kind]
    prompt = tokenizer.encode("b")
    ids = tokenizer.encode("b" + answer)
    if ids[: len(prompt)] != prompt:
        return
    stream = tokenizer.stream(True, prompt)
    text = "".join(stream.push(one) for one in ids[len(prompt) :]) + stream.finish()
    content = list(chat_logprobs(call_of(tokenizer), ids[len(prompt) :], rows(tokenizer, ids[len(prompt) :])))
    assert text == answer
    assert b"".join(bytes(one.bytes or ()) for one in content).decode() == answer
