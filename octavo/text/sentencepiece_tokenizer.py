"""A SentencePiece vocabulary, from whichever file, as an encoder of the `tokenizers` library.

Spaces are written as U+2581 and one is put before a text: `always`, which is before each stretch between special tokens
too, as older tokenizers have it; `first`, before the text only; or `never`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from octavo.text.sentencepiece_merges import cached_merge_pairs
from octavo.text.sentencepiece_model import BYTE, NORMAL, USER_DEFINED

SpacePrefix = Literal["always", "first", "never"]

_SPACE = "▁"
_LONGEST_BYTE = len("<0x00>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """tokens, scores, types: by id. raw: what the merges are remembered by."""

    tokens: Sequence[str]
    scores: NDArray[np.float32]
    types: NDArray[np.int32]
    unknown: str | None
    raw: memoryview

    def ids(self) -> dict[str, int]:
        return dict(zip(self.tokens, range(len(self.tokens)), strict=True))


def bpe_encoder(pieces: Pieces) -> Tokenizer:
    tokens = pieces.tokens
    pairs = cached_merge_pairs(tokens, pieces.scores, pieces.types == NORMAL, pieces.raw)
    return Tokenizer(
        models.BPE(
            vocab=pieces.ids(),
            merges=[(tokens[left], tokens[right]) for left, right in pairs.tolist()],
            unk_token=pieces.unknown,
            byte_fallback=True,
            fuse_unk=True,
        )
    )


def unigram_encoder(pieces: Pieces) -> Tokenizer:
    """Pieces that stand for no text get a score below all others: a text that spells one is not taken for it."""
    is_text = np.isin(pieces.types, (NORMAL, USER_DEFINED))
    lowest = min(0.0, float(pieces.scores[is_text].min()) if is_text.any() else 0.0)
    scores = np.where(is_text, pieces.scores, _LONGEST_BYTE * lowest - 1.0).tolist()
    unknown = None if pieces.unknown is None else pieces.ids()[pieces.unknown]
    has_bytes = bool((pieces.types == BYTE).any())
    return Tokenizer(models.Unigram(list(zip(pieces.tokens, scores, strict=True)), unknown, has_bytes))


def mark_tokens(encoder: Tokenizer, special: Sequence[str], user_defined: Sequence[str]) -> None:
    """Tokens that are found in a text before anything else. One of spaces, as Gemma has them, is found in the text as
    it is written with U+2581."""
    as_written = encoder.normalizer
    encoder.add_tokens(
        [
            AddedToken(
                text,
                special=False,
                normalized=_SPACE in text and as_written is not None and as_written.normalize_str(text) == text,
            )
            for text in user_defined
            if text
        ]
    )
    encoder.add_special_tokens([AddedToken(text, normalized=False) for text in special if text])


def write_spaces(
    encoder: Tokenizer, prefix: SpacePrefix, character_map: bytes = b"", *, removes_extra_spaces: bool = False
) -> None:
    """character_map: how characters are rewritten before anything else, as SentencePiece compiles it."""
    before: list[normalizers.Normalizer] = [normalizers.Precompiled(character_map)] if character_map else []
    if removes_extra_spaces:
        before += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    restore: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "always":
        before.append(normalizers.Prepend(_SPACE))
    if prefix == "first":
        encoder.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first", split=False)
    else:
        before.append(normalizers.Replace(" ", _SPACE))
    if before:
        encoder.normalizer = normalizers.Sequence(before)
    if prefix != "never":
        restore.append(decoders.Strip(content=" ", left=1, right=0))
    encoder.decoder = decoders.Sequence(restore)
