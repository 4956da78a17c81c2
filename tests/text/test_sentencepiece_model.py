"""Folders with only SentencePiece's tokenizer.model, and files that are not SentencePiece models."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import ModelLoadError, TokenizerError
from octavo.text.folder_tokenizer import tokenizer_from_folder
from octavo.text.sentencepiece_model import read_sentencepiece_model
from octavo.text.tokenizer import Tokenizer
from tests.text.sentencepiece_files import BYTES, LLAMA, WORDS, field, model_bytes, varint, write_model

UNIGRAM = [*LLAMA, *WORDS, *((character, -7.0, 1) for character in "<0x41>")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / "cache"))


def open_folder(folder: Path, content: bytes | None = None, **config: Any) -> Tokenizer:
    write_model(folder, content)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(tokenizer_from_folder(folder))


def tokens(tokenizer: Tokenizer, text: str) -> list[str | None]:
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text))


def test_a_byte_pair_vocabulary(tmp_path: Path) -> None:
    tokenizer = open_folder(tmp_path)
    assert tokens(tokenizer, "ab aé") == ["<s>", "▁ab", "▁a", "<0xC3>", "<0xA9>"]
    assert tokens(tokenizer, "b</s> a") == ["<s>", "▁", "b", "</s>", "▁", "▁a"]
    assert tokenizer.decode(tokenizer.encode("ab  aé")) == "ab  aé"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ["<s>", "▁ab", "</s>", "▁ab"]),
        ({"legacy": True}, ["<s>", "▁ab", "</s>", "▁ab"]),
        ({"legacy": False}, ["<s>", "▁ab", "</s>", "ab"]),
        ({"add_prefix_space": False}, ["<s>", "ab", "</s>", "ab"]),
        ({"add_bos_token": False, "add_eos_token": True}, ["▁ab", "</s>", "▁ab", "</s>"]),
        ({"bos_token": "</s>"}, ["</s>", "▁ab", "</s>", "▁ab"]),
    ],
)
def test_what_the_settings_say_of_it(tmp_path: Path, config: dict[str, Any], expected: list[str]) -> None:
    tokenizer = open_folder(tmp_path, **config)
    assert tokens(tokenizer, "ab</s>ab") == expected


def test_listed_tokens_keep_their_flags(tmp_path: Path) -> None:
    """As Phi-3's, which swallow the space after them."""
    listed = {"2": {"content": "</s>", "rstrip": True, "normalized": False, "special": False}}
    tokenizer = open_folder(tmp_path, added_tokens_decoder=listed, eos_token="</s>", legacy=False)
    assert tokens(tokenizer, "ab</s>  \n ab") == ["<s>", "▁ab", "</s>", "ab"]
    assert tokenizer.decode(tokenizer.encode("ab</s> ab")) == "abab"


def test_a_unigram_vocabulary_takes_the_likeliest_pieces(tmp_path: Path) -> None:
    """'▁ab' costs 3, '▁a' and 'b' together 7; a text that spells a byte's piece stays text."""
    tokenizer = open_folder(tmp_path, model_bytes(UNIGRAM, kind=1, trainer={35: 1}))
    assert tokens(tokenizer, "ab aab") == ["<s>", "▁ab", "▁a", "ab"]
    assert tokens(tokenizer, "é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert "<0x41>" not in tokens(tokenizer, "<0x41>")
    assert tokenizer.decode(tokenizer.encode("ab é<0x41>")) == "ab é<0x41>"


def test_the_files_own_rules_for_spaces(tmp_path: Path) -> None:
    bare = open_folder(tmp_path, model_bytes([*LLAMA, *WORDS], normalizer={3: 0}))
    assert tokens(bare, "ab") == ["<s>", "ab"]
    trimmed = open_folder(tmp_path, model_bytes([*LLAMA, *WORDS], normalizer={4: 1}))
    assert tokens(trimmed, "  ab   ab ") == ["<s>", "▁ab", "▁ab"]


def test_user_defined_pieces_of_spaces_are_found_as_in_gemma(tmp_path: Path) -> None:
    spaces = [*LLAMA, ("▁▁", 0.0, 4), ("▁▁▁", 0.0, 4), ("<b>", 0.0, 4), *WORDS]
    tokenizer = open_folder(tmp_path, model_bytes(spaces, normalizer={3: 0}))
    assert tokens(tokenizer, "a     a<b>") == ["<s>", "a", "▁▁▁", "▁▁", "a", "<b>"]
    assert tokenizer.decode(tokenizer.encode("a     a<b>")) == "a     a<b>", "they are no special tokens"


def test_roles_are_those_that_the_file_names(tmp_path: Path) -> None:
    content = model_bytes([*LLAMA, *WORDS], trainer={40: 0, 41: 2, 42: 1, 43: -1})
    model = read_sentencepiece_model(write_model(tmp_path, content) / "tokenizer.model")
    assert model.roles == {"unk": "<unk>", "bos": "</s>", "eos": "<s>"}
    nobody = model_bytes(WORDS, trainer={41: 0})
    assert read_sentencepiece_model(write_model(tmp_path, nobody) / "tokenizer.model").roles == {}


def test_fields_that_nobody_needs_are_passed_over(tmp_path: Path) -> None:
    more = field(9, b"x" * 300) + varint(10 << 3 | 1) + b"12345678" + field(11, 1 << 63) + field(12, 1.5)
    tokenizer = open_folder(tmp_path, more + model_bytes([*LLAMA, *WORDS]) + more)
    assert tokens(tokenizer, "ab") == ["<s>", "▁ab"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no pieces"),
        (b"IQ== 0\nIg== 1\n", "so it is not a SentencePiece model"),  # a tiktoken file, as Llama 3 has it
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer in place of the file"),
        (model_bytes(WORDS)[:40], "is cut off: "),
        (field(1, field(1, "a")) + b"\x0a\xff", "is cut off inside a number"),
        (field(1, field(1, "a")) + b"\x08" + b"\xff" * 11, "a number of more than 64 bits"),
        (field(1, field(1, b"\xff")), "piece 0, which is not UTF-8"),
        (field(1, field(1, "a") + field(3, 9)), "piece 0 of kind 9, allowed are 1 to 6"),
        (field(1, field(1, "a") + field(2, float("nan"))), "piece 0 of score nan, allowed are finite numbers"),
        (field(1, field(1, 7)), "has a number in field 1, where bytes belong"),
        (field(1, field(1, "a") + field(3, b"x")), "has bytes in field 3, where a number belongs"),
        (field(1, 7), "has a number in field 1, where bytes belong"),
        (model_bytes(WORDS, kind=3), r"model of kind 3; Octavo reads 1 \(unigram\) and 2"),
        (model_bytes([("a" * 2000, 0.0, 1)]), "a piece of 2000 characters"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises((TokenizerError, ModelLoadError), match=problem):
        open_folder(tmp_path, content)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.integers(1, 2))
def test_changed_bytes_never_do_more_than_raise(tmp_path: Path, data: st.DataObject, kind: int) -> None:
    content = bytearray(model_bytes([*LLAMA[:3], *BYTES[:8], *WORDS], kind=kind, normalizer={2: bytes(40)}))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(TokenizerError):
        tokenizer = open_folder(tmp_path, bytes(content[: data.draw(st.integers(1, len(content)))]))
        tokenizer.decode(tokenizer.encode("ab aé </s>"))
