"""Streams: the pieces joined are what decoding everything at once gives, for any ids at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from octavo.engine.detokenizer import Detokenizer
from octavo.errors import TokenizerError
from tests.engine import tokenizers

SMALL = {
    "byte-level": tokenizers.byte_level(),
    "byte-fallback": tokenizers.byte_fallback(),
    "metaspace": tokenizers.metaspace(),
    "metaspace-never": tokenizers.metaspace("never"),
}
SPECIAL = {
    "smollm2": ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>"],
    "gemma3-270m": ["<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>", "<end_of_turn>"],
}
#: ids of every kind, with those past the vocabulary, and more of the low ones, where the bytes are
ANY_IDS = st.lists(st.one_of(st.integers(0, 300), st.integers(0, 270_000)), max_size=40)
small = pytest.mark.parametrize("kind", SMALL)


def streamed(encoder: Tokenizer, ids: list[int], skip_special_tokens: bool) -> str:
    stream = Detokenizer(encoder).stream(skip_special_tokens)
    return "".join(stream.push(token_id) for token_id in ids) + stream.finish()


@small
@settings(max_examples=200, deadline=None)
@given(ids=ANY_IDS, skip_special_tokens=st.booleans())
def test_any_ids_stream_to_what_they_decode_to(kind: str, ids: list[int], skip_special_tokens: bool) -> None:
    encoder = SMALL[kind]
    assert streamed(encoder, ids, skip_special_tokens) == encoder.decode(ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
@settings(max_examples=200, deadline=None)
@given(ids=ANY_IDS, skip_special_tokens=st.booleans())
def test_any_ids_of_the_packaged_models(name: str, ids: list[int], skip_special_tokens: bool) -> None:
    tokenizer = tokenizers.packaged(name)
    stream = tokenizer.stream(skip_special_tokens)
    text = "".join(stream.push(token_id) for token_id in ids) + stream.finish()
    assert text == tokenizer.decode(ids, skip_special_tokens)


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_special_tokens_stand_side_by_side(name: str) -> None:
    tokenizer = tokenizers.packaged(name)
    special = [one for one in tokenizer.convert_tokens_to_ids(SPECIAL[name]) if one is not None]
    assert len(special) == len(SPECIAL[name])
    stream = tokenizer.stream(skip_special_tokens=False)
    assert [stream.push(token_id) for token_id in special] == SPECIAL[name]


@small
def test_special_tokens_of_any_decoder_stand_side_by_side(kind: str) -> None:
    encoder = Tokenizer.from_str(SMALL[kind].to_str())
    words = ["<s>", "</s>", "<|x y|>"]
    encoder.add_special_tokens(words)
    ids = [encoder.token_to_id(word) for word in words * 2]
    assert streamed(encoder, ids, skip_special_tokens=False) == "".join(words * 2)


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30).filter(lambda text: "s>" not in text))  # a special token spelled out becomes one
def test_a_text_comes_through_unbroken(kind: str, text: str) -> None:
    encoder = SMALL[kind]
    assert streamed(encoder, encoder.encode(text).ids, True) == text


def test_a_character_in_parts_appears_when_it_is_whole() -> None:
    encoder = SMALL["byte-level"]
    stream = Detokenizer(encoder).stream()
    pieces = [stream.push(token_id) for token_id in encoder.encode("é€").ids]
    assert pieces == ["é", "", "", "€"]
    assert stream.push(encoder.encode("€").ids[0]) == ""
    assert stream.finish() == "\ufffd"


def test_a_broken_character_is_given_up_as_soon_as_it_cannot_be_one() -> None:
    encoder = SMALL["byte-level"]
    stream = Detokenizer(encoder).stream()
    first, letter = encoder.encode("€").ids[0], encoder.encode("x").ids[0]
    assert [stream.push(first), stream.push(letter)] == ["", "\ufffdx"]


def test_a_run_of_byte_tokens_is_held_until_it_ends() -> None:
    encoder = SMALL["byte-fallback"]
    stream = Detokenizer(encoder).stream()
    ids = encoder.encode("€a").ids
    assert [stream.push(token_id) for token_id in ids] == ["", "", "", "", "€a"]


def test_streams_do_not_disturb_each_other() -> None:
    detokenizer = Detokenizer(SMALL["byte-level"])
    ids = SMALL["byte-level"].encode("€€").ids
    first, second = detokenizer.stream(), detokenizer.stream()
    texts = [first.push(token_id) + second.push(token_id) for token_id in ids]
    assert "".join(texts) == "€€€€"


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.Strip(content=" ", left=0, right=1), None])
def test_a_decoder_that_cannot_be_streamed_is_named(decoder: decoders.Decoder | None) -> None:
    encoder = tokenizers.metaspace()
    encoder.decoder = decoder
    with pytest.raises(TokenizerError, match=r"decoder is (WordPiece|Strip|missing), which Octavo cannot stream"):
        Detokenizer(encoder)
