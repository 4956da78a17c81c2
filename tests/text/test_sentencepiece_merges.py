"""One merge per piece encodes as all splits would, and as SentencePiece's own rule does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from octavo.models.gguf import read_gguf
from octavo.models.packaged import locate_packaged_model
from octavo.text import sentencepiece_tokenizer
from octavo.text.sentencepiece_tokenizer import cached_merge_pairs, merge_pairs
from tests.text import tokenizers


def encode_by_scores(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's rule: join the two neighbours that form the best piece, the leftmost if several do."""
    symbols = list(text)
    while True:
        joined = [left + right for left, right in pairwise(symbols)]
        best = max(joined, key=lambda piece: scores.get(piece, -np.inf), default="")
        if best not in scores:
            return symbols
        at = joined.index(best)
        symbols[at : at + 2] = [best]


def encode_by_merges(text: str, pieces: Sequence[str], pairs: np.ndarray) -> list[str]:
    vocab = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocab, merges=[(pieces[left], pieces[right]) for left, right in pairs.tolist()])
    return [token.value for token in model.tokenize(text)] if text else []


@settings(max_examples=150, deadline=None)
@given(
    longer=st.lists(st.text("abc", min_size=2, max_size=5), unique=True, max_size=25),
    order=st.randoms(use_true_random=False),
    text=st.text("abc", max_size=30),
)
def test_encodes_as_sentencepiece_does(longer: list[str], order: object, text: str) -> None:
    order.shuffle(longer)  # type: ignore[attr-defined]
    pieces = ["a", "b", "c", *longer]
    scores = -np.arange(len(pieces), dtype=np.float32)
    pairs = merge_pairs(pieces, scores, np.ones(len(pieces), bool))
    assert len(pairs) <= len(longer)
    expected = encode_by_scores(text, dict(zip(pieces, scores.tolist(), strict=True)))
    assert encode_by_merges(text, pieces, pairs) == expected


def all_splits(pieces: list[str], scores: np.ndarray, mergeable: np.ndarray) -> list[tuple[str, str]]:
    known = set(pieces)
    splits = []
    for token_id in np.lexsort((np.arange(len(pieces)), -scores)).tolist():
        piece = pieces[token_id]
        if mergeable[token_id]:
            cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
            splits += [(left, right) for left, right in cuts if left in known and right in known]
    return splits


def test_gemma_encodes_a_book_as_with_all_splits() -> None:
    metadata = read_gguf(locate_packaged_model("gemma3-270m")).metadata
    pieces = metadata["tokenizer.ggml.tokens"].tolist()
    scores, types = metadata["tokenizer.ggml.scores"], metadata["tokenizer.ggml.token_type"]
    model = models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=all_splits(pieces, scores, types == 1),
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = tokenizers.packaged("gemma3-270m")
    book = "".join(topics[name] for name in sorted(topics))[:60_000] + "Grüße, 你好世界! Привет. 🎉👩‍👩‍👧 ﷽"
    for line in book.split("\n"):
        line = line.replace("  ", " x")  # runs of spaces and line ends are tokens found before the merges
        expected = [token.id for token in model.tokenize(line.replace(" ", "▁"))] if line else []
        assert tokenizer.encode(line, add_special_tokens=False) == expected


def test_pairs_are_remembered_and_a_broken_memory_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path))
    pieces = ["a", "b", "ab", "aba"]
    arguments = (pieces, np.array([0, 0, -1, -2], np.float32), np.ones(4, bool), memoryview(b"the vocabulary"))
    first = cached_merge_pairs(*arguments)
    assert first.tolist() == [[0, 1], [2, 0]]
    (kept,) = tmp_path.iterdir()

    monkeypatch.setattr(sentencepiece_tokenizer, "merge_pairs", lambda *_: pytest.fail("the pairs were kept"))
    assert cached_merge_pairs(*arguments).tolist() == first.tolist()
    monkeypatch.undo()

    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path))
    for broken in (b"", b"nonsense", kept.read_bytes()[:-3]):
        kept.write_bytes(broken)
        assert cached_merge_pairs(*arguments).tolist() == first.tolist()
    np.save(kept, np.array([[0, 99]], np.int32))
    assert cached_merge_pairs(*arguments).tolist() == first.tolist()
