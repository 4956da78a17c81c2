"""tiktoken's file against a plain reading of what tiktoken does: the lowest rank of two neighbours is merged first."""

from __future__ import annotations

import base64
import json
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest

from octavo.errors import TokenizerError
from octavo.text.folder_tokenizer import tokenizer_from_folder
from octavo.text.text_cuts import cutter
from octavo.text.tokenizer_parts import TokenizerParts

WORDS = ["Hello", " world", "ing", "the", " the", "月之暗", "123", "!!", "\n\n", "'s"]


def ranks() -> dict[bytes, int]:
    """All bytes, and what it takes to make the words from pairs, in an order of their own."""
    found = {bytes([byte]): byte for byte in range(256)}
    rng = random.Random(3)
    for word in WORDS:
        parts = [bytes([byte]) for byte in word.encode()]
        while len(parts) > 1:
            at = rng.randrange(len(parts) - 1)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            found.setdefault(parts[at], len(found))
    return found


def encoded(word: str, known: dict[bytes, int]) -> list[int]:
    """One word, as tiktoken does it."""
    if (whole := word.encode()) in known:
        return [known[whole]]
    parts = [bytes([byte]) for byte in word.encode()]
    while True:
        pairs = [(known.get(one + two, 1 << 30), at) for at, (one, two) in enumerate(pairwise(parts))]
        rank, at = min(pairs, default=(1 << 30, 0))
        if rank == 1 << 30:
            return [known[part] for part in parts]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def lines(known: dict[bytes, int]) -> str:
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in known.items())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    known = ranks()
    (tmp_path / "tiktoken.model").write_text(lines(known))
    added = {
        str(len(known)): {"content": "[BOS]", "special": True},
        str(len(known) + 2): {"content": "<|im_end|>", "special": True},
        str(len(known) + 11): {"content": "<|tool_call_begin|>", "special": False},
    }
    settings = {"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": added, "bos_token": "[BOS]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def read(folder: Path) -> TokenizerParts:
    return tokenizer_from_folder(folder)


def test_words_have_tiktokens_tokens(folder: Path) -> None:
    known, encoder, rng = ranks(), read(folder).encoder, random.Random(0)
    for _ in range(300):
        word = "".join(rng.choice([*WORDS, "e", "h", "th", "in", "月"]) for _ in range(rng.randrange(1, 4)))
        pieces = [word[begin:end] for _, (begin, end) in cutter("kimi-k2").pre_tokenize_str(word)]  # type: ignore[union-attr]
        expected = [token for piece in pieces for token in encoded(piece, known)]
        assert encoder.encode(word).ids == expected, word
        assert encoder.decode(expected) == word


def test_special_tokens_follow_named_or_not(folder: Path) -> None:
    count, parts = len(ranks()), read(folder)
    assert parts.encoder.get_vocab_size() == count + 256
    assert parts.encoder.encode("[BOS]the<|im_end|>").ids == [count, ranks()[b"the"], count + 2]
    assert parts.encoder.id_to_token(count + 1) == f"<|reserved_token_{count + 1}|>"
    call = parts.encoder.token_to_id("<|tool_call_begin|>")
    assert call == count + 11
    assert parts.encoder.decode([call, count + 2], skip_special_tokens=True) == "<|tool_call_begin|>"
    assert parts.special_tokens["bos_token"] == "[BOS]"


def test_text_is_cut_as_kimi_cuts_it() -> None:
    found = cutter("kimi-k2").pre_tokenize_str("GPT4发布于2023年, it's XMLHttp月 ok\n\n x")  # type: ignore[union-attr]
    text = "GPT4发布于2023年, it's XMLHttp月 ok\n\n x"
    pieces = [text[begin:end] for _, (begin, end) in found]
    assert pieces == ["GPT", "4", "发布于", "202", "3", "年", ",", " it's", " XMLHttp", "月", " ok", "\n\n", " x"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("IQ== 1\n", "line 1 is 'IQ== 1', allowed a new token in base64 and its rank, 0"),
        ("IQ== 0\nIQ== 1\n", "line 2 is 'IQ== 1'"),
        ("IQ==\n", "line 1 is 'IQ=='"),
        ("I*== 0\n", "line 1"),
        (" 0\n", "line 1"),
        ("IQ== 0\n", "has no token for the byte 0"),
    ],
)
def test_a_broken_file_is_named_with_its_line(folder: Path, content: str, problem: str) -> None:
    (folder / "tiktoken.model").write_text(content)
    with pytest.raises(TokenizerError, match=f"{folder}.*{re.escape(problem)}"):
        read(folder)


def test_a_folder_in_mistrals_own_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"no tiktoken\.model; tekken\.json is in Mistral's own format; pass"):
        read(tmp_path)
