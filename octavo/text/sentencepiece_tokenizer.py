"""A SentencePiece vocabulary as an encoder of the `tokenizers` library, and the merges that it needs.

Spaces are written as U+2581, and one is put before a text: `always`, also before each stretch between special tokens,
as older tokenizers do; `first`, before the text only; or `never`.

SentencePiece joins the two neighbours that form the best-scored piece. A byte-pair encoder needs the list of pairs to
join, best first. A piece can be split in two in many ways, but only one of them occurs: if the encoder builds the
piece, nothing was joined across its edges, so its parts were joined as when the piece is encoded alone. So each piece
needs one pair, the last join of its own encoding: half as many as listing every split, and half the start-up time.

Finding the pairs takes a second or two for 262,144 pieces, so they are cached on disk under the vocabulary's hash.
Without a writable cache folder they are computed at every start.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from octavo.env import cache_dir
from octavo.errors import ConfigError, TokenizerError
from octavo.observe.logging import LOGGER
from octavo.text.sentencepiece_model import BYTE, NORMAL, USER_DEFINED

SpacePrefix = Literal["always", "first", "never"]

_SPACE = "▁"
_LONGEST_BYTE = len("<0x00>")

MergePairs = NDArray[np.int32]  # [num_merges, 2] token ids, best first

_LONGEST_PIECE = 1000  # the work grows with the square of the length; real pieces stay below a hundred
_FORMAT = b"merges 1"  # change it when the pairs of the same vocabulary would come out differently


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """tokens, scores, types: by id. raw: the key of the cached merges."""

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
    """Pieces that are not text get a score below all others, so that a text that spells one is not encoded as it."""
    is_text = np.isin(pieces.types, (NORMAL, USER_DEFINED))
    lowest = min(0.0, float(pieces.scores[is_text].min()) if is_text.any() else 0.0)
    scores = np.where(is_text, pieces.scores, _LONGEST_BYTE * lowest - 1.0).tolist()
    unknown = None if pieces.unknown is None else pieces.ids()[pieces.unknown]
    has_bytes = bool((pieces.types == BYTE).any())
    return Tokenizer(models.Unigram(list(zip(pieces.tokens, scores, strict=True)), unknown, has_bytes))


def mark_tokens(encoder: Tokenizer, special: Sequence[str], user_defined: Sequence[str]) -> None:
    """Tokens that are found in a text before anything else. A token of spaces (Gemma) is found in the normalised text,
    where spaces are U+2581."""
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


def cached_merge_pairs(
    pieces: Sequence[str], scores: NDArray[np.float32], mergeable: NDArray[np.bool_], raw: memoryview
) -> MergePairs:
    """`merge_pairs`, cached on disk. `raw` is the vocabulary's bytes in the model file."""
    key = hashlib.blake2b(_FORMAT, digest_size=16)
    for part in (raw, scores.tobytes(), mergeable.tobytes()):
        key.update(part)
    try:
        path = cache_dir() / f"merges-{key.hexdigest()}.npy"
    except ConfigError:  # no cache folder, as in a read-only home
        return merge_pairs(pieces, scores, mergeable)
    pairs = _read(path, len(pieces))
    if pairs is None:
        pairs = merge_pairs(pieces, scores, mergeable)
        _write(path, pairs)
    return pairs


def merge_pairs(pieces: Sequence[str], scores: NDArray[np.float32], mergeable: NDArray[np.bool_]) -> MergePairs:
    """Each mergeable piece's pair, best score first, ties by id."""
    ids = {piece: token_id for token_id, piece in enumerate(pieces)}
    order = np.lexsort((np.arange(len(pieces)), -scores))
    order = order[mergeable[order]]
    ranks = {pieces[token_id]: rank for rank, token_id in enumerate(order.tolist())}
    pairs: list[tuple[int, int]] = []
    for token_id in order.tolist():
        pair = _last_join(pieces[token_id], ranks)
        if pair is not None and pair[0] in ids and pair[1] in ids:
            pairs.append((ids[pair[0]], ids[pair[1]]))
    return np.array(pairs, np.int32).reshape(-1, 2)


def _last_join(piece: str, ranks: dict[str, int]) -> tuple[str, str] | None:
    """The two parts that the encoder joins last to build the piece; None if it never does."""
    if len(piece) > _LONGEST_PIECE:
        raise TokenizerError(f"the vocabulary holds a piece of {len(piece)} characters, allowed are {_LONGEST_PIECE}")
    symbols = list(piece)
    never = len(ranks)
    while len(symbols) > 2:
        joined = [ranks.get(left + right, never) for left, right in pairwise(symbols)]
        best = min(joined)
        if best == never:
            return None
        at = joined.index(best)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return (symbols[0], symbols[1]) if len(symbols) == 2 else None


def _read(path: Path, num_pieces: int) -> MergePairs | None:
    """None if the file is missing or damaged."""
    try:
        pairs = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if pairs.dtype != np.int32 or pairs.ndim != 2 or pairs.shape[1] != 2:
        return None
    in_range = pairs.size == 0 or (int(pairs.min()) >= 0 and int(pairs.max()) < num_pieces)
    return pairs if in_range else None


def _write(path: Path, pairs: MergePairs) -> None:
    """Cache the pairs if possible: with a full or read-only disk the next start computes them again."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, pairs)
        partial.replace(path)
    except OSError as error:
        LOGGER.info("the tokenizer's merges cannot be kept in %s: %s", path.parent, error)
        with suppress(OSError):
            partial.unlink(missing_ok=True)
