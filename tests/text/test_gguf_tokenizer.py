"""Tokenizers from GGUF metadata: which values are filled in, and the errors for invalid metadata."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from octavo.errors import OctavoError, TokenizerError
from octavo.models.gguf import read_gguf
from octavo.text.gguf_tokenizer import tokenizer_from_gguf
from octavo.text.text_cuts import cut_of_kind, cutter, known_cuts
from octavo.text.tokenizer import Tokenizer
from tests.models.gguf_files import write_gguf

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
GPT2: dict[str, Any] = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": [*BYTES, "he", "ll", "hell", "hello", "<s>", "</s>", "<note>"],
    "token_type": [1] * (len(BYTES) + 4) + [3, 3, 4],
    "merges": ["h e", "l l", "he ll", "hell o"],
    "bos_token_id": len(BYTES) + 4,
    "eos_token_id": len(BYTES) + 5,
}
LLAMA: dict[str, Any] = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "ab", "▁", "a", "b", "▁ab"],
    "scores": [0.0] * 259 + [0.0, -1.0, -2.0, -3.0, -4.0, -5.0],
    "token_type": [2, 3, 3] + [6] * 256 + [1] * 6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / "cache"))


def write(folder: Path, keys: dict[str, Any], architecture: str = "llama") -> Path:
    keys = {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}
    return write_gguf(folder / "vocabulary.gguf", architecture, keys, {})


def make(folder: Path, keys: dict[str, Any], architecture: str = "llama") -> Tokenizer:
    return Tokenizer(tokenizer_from_gguf(read_gguf(write(folder, keys, architecture))))


def test_byte_level(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, GPT2)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("hello <note></s>")) == ["hello", "Ġ", "<note>", "</s>"]
    assert tokenizer.decode(tokenizer.encode("hello <note></s>")) == "hello <note>"


@pytest.mark.parametrize(("pre", "adds_bos"), [("gpt-2", False), ("smollm", False), ("llama-bpe", True)])
def test_whether_bos_is_added_where_the_file_does_not_say(tmp_path: Path, pre: str, adds_bos: bool) -> None:
    tokenizer = make(tmp_path, GPT2 | {"pre": pre})
    assert (tokenizer.encode("h")[0] == tokenizer.bos_token_id) == adds_bos
    told = make(tmp_path, GPT2 | {"pre": pre, "add_bos_token": not adds_bos, "add_eos_token": True})
    assert (told.encode("h")[0] == told.bos_token_id) != adds_bos
    assert told.encode("h")[-1] == told.eos_token_id


@pytest.mark.parametrize("pre", [None, "default"])
@pytest.mark.parametrize(
    ("architecture", "cut", "said"),
    [
        ("qwen2", "qwen2", "'qwen2', as 'qwen2' models do"),
        ("qwen3", "qwen2", "'qwen2', as 'qwen3' models do"),
        ("gpt2", "gpt-2", "'gpt-2', as 'gpt2' models do"),
        ("llama", "gpt-2", "'gpt-2', which may be wrong"),
    ],
)
def test_a_file_that_does_not_say_how_text_is_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str, pre: str | None, cut: str, said: str
) -> None:
    tokenizer = make(tmp_path, GPT2 | {"pre": pre, "add_bos_token": False}, architecture)
    text = "hello 123 e\u0301"
    assert tokenizer.encode(text) == make(tmp_path, GPT2 | {"pre": cut}).encode(text)
    assert f"does not say how its tokenizer cuts text (tokenizer.ggml.pre); taken for {said}" in caplog.text


def test_a_large_vocabulary_of_the_llama_kind_is_llama_3s() -> None:
    assert cut_of_kind("llama", 128_256) == "llama-bpe"
    assert cut_of_kind("llama", 32_000) is None


@pytest.mark.parametrize("cache", ["is/a/file/cache", "/proc"])
def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    (tmp_path / "is").write_text("a file, in which no folder can be made")
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / cache))
    assert make(tmp_path, LLAMA).convert_ids_to_tokens(make(tmp_path, LLAMA).encode("ab")) == ["<s>", "▁ab"]


def test_sentencepiece(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, LLAMA)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("ab aé"))
    assert tokens == ["<s>", "▁ab", "▁a", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("ab aé")) == "ab aé"
    bare = make(tmp_path, LLAMA | {"add_space_prefix": False, "add_bos_token": False})
    assert bare.convert_ids_to_tokens(bare.encode("ab")) == ["ab"]


def test_phi_3_swallows_the_space_after_special_tokens(tmp_path: Path) -> None:
    chat = "</s>\n a"
    assert make(tmp_path, LLAMA).encode(chat) != make(tmp_path, LLAMA, "phi3").encode(chat)
    assert make(tmp_path, LLAMA, "phi3").encode(chat) == make(tmp_path, LLAMA, "phi3").encode("</s>a")


def words(name: str, text: str) -> list[str]:
    rule = cutter(name)
    assert rule is not None
    return [text[start:end] for _, (start, end) in rule.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-2", ["It", "'s", " 12345", "\n", "\n", "  ", " OK", "!?\n"]),
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", "5", "\n", "\n", "  ", " OK", "!?\n"]),
        ("llama-bpe", ["It", "'s", " ", "123", "45", "\n\n", "  ", " OK", "!?\n"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", "5", "\n\n", "  ", " OK", "!?\n"]),
        ("tekken", ["It", "'s", " ", "1", "2", "3", "4", "5", "\n\n", "  ", " OK", "!?\n"]),
        ("gpt-4o", ["It's", " ", "123", "45", "\n\n", "  ", " OK", "!?\n"]),
        ("falcon3", ["It", "'s", " ", "123", "45", "\n\n", "  ", " OK", "!?\n"]),
        ("megrez", ["It", "'s", " ", "1", "2", "3", "4", "5", "\n\n", "  ", " OK", "!?\n"]),
        ("seed-coder", ["It", "'s", " ", "1", "2", "3", "4", "5", "\n\n", "  ", " OK", "!?", "\n"]),
        ("deepseek-llm", ["It", "'", "s", " ", "12345", "\n", "\n", "  ", " OK", "!?", "\n"]),
        ("deepseek-coder", ["It", "'", "s", " ", "1", "2", "3", "4", "5", "\n", "\n", "  ", " OK", "!?", "\n"]),
        ("deepseek-v3", ["It", "'s", " ", "123", "45", "\n\n", "  ", " OK", "!?\n"]),
    ],
)
def test_each_rule_cuts_as_its_models_do(name: str, expected: list[str]) -> None:
    assert "".join(expected) == "It's 12345\n\n   OK!?\n"
    got = words(name, "It's 12345\n\n   OK!?\n")
    if name in ("gpt-2", "smollm"):  # their white space runs over line ends, up to one space before a word
        assert [word for word in got if word.strip()] == [word.strip("\n") for word in expected if word.strip()]
    else:
        assert got == expected


def test_case_counts_only_where_it_should() -> None:
    assert words("tekken", "camelCase") == ["camel", "Case"]
    assert words("qwen2", "camelCase") == ["camelCase"]


@pytest.mark.parametrize("name", known_cuts())
def test_every_rule_loses_nothing(name: str) -> None:
    text = "Grüße,  42 – \t'Tis 你好\r\n\r\n x₂ ٣٤ end  "
    assert "".join(words(name, text)) == text


BROKEN: list[tuple[dict[str, Any], str]] = [
    (GPT2 | {"tokens": None}, "tokens is missing"),
    (GPT2 | {"tokens": [1, 2]}, "tokens is missing or not a list of strings"),
    (GPT2 | {"merges": None}, "merges is missing"),
    (GPT2 | {"merges": ["he"]}, "merges holds entries that are not two tokens"),
    (GPT2 | {"merges": ["x yz"]}, "tokens are not valid"),
    (GPT2 | {"token_type": [1]}, "token_type must hold one number for each of 263 tokens"),
    (GPT2 | {"pre": "no-such"}, "pre is 'no-such'; Octavo knows a.x-4.0, chatglm-bpe"),
    (GPT2 | {"bos_token_id": 1000}, "bos_token_id is 1000, allowed are 0 to 262"),
    (GPT2 | {"add_bos_token": 1}, "add_bos_token is 1, allowed are true and false"),
    (GPT2 | {"model": "rwkv"}, "model is 'rwkv'; Octavo reads 'gpt2' and 'llama'"),
    (LLAMA | {"scores": ["high"] * 265}, "scores must hold one number"),
]


@pytest.mark.parametrize(("keys", "message"), BROKEN)
def test_broken_metadata_is_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=f"vocabulary.gguf: tokenizer.ggml.{message}.*pass tokenizer="):
        make(tmp_path, keys)


def test_an_endless_piece_is_refused(tmp_path: Path) -> None:
    longest = LLAMA | {"tokens": [*LLAMA["tokens"][:-1], "a" * 2000]}
    with pytest.raises(TokenizerError, match="a piece of 2000 characters"):
        make(tmp_path, longest)


def test_named_templates_are_found(tmp_path: Path) -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in GPT2.items()}
    templates = {"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b"}
    file = read_gguf(write_gguf(tmp_path / "f.gguf", "llama", metadata | templates, {}))
    assert tokenizer_from_gguf(file).chat_templates == {"default": "a", "tool_use": "b"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), keys=st.sampled_from([GPT2, LLAMA]))
def test_changed_bytes_never_do_more_than_raise(tmp_path: Path, data: st.DataObject, keys: dict[str, Any]) -> None:
    content = np.fromfile(write(tmp_path, keys), np.uint8)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.gguf"
    content.tofile(path)
    with suppress(OctavoError):
        tokenizer = Tokenizer(tokenizer_from_gguf(read_gguf(path)))
        tokenizer.decode(tokenizer.encode("hello ab </s>"))
