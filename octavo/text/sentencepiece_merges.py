"""A SentencePiece vocabulary's merges, so that a byte-pair encoder can stand in for SentencePiece.

SentencePiece joins whichever two neighbours make the best-scored piece. A byte-pair encoder wants the list
of pairs to join, best first. A piece may split in two in many ways, but only one of them ever happens: if
the encoder makes the piece at all, then nothing joined across the piece's edges, so what happened inside is
what happens when the piece is encoded alone. Hence one pair a piece, the last join of its own encoding; half
as many as listing every split, and the encoder starts in half the time.

Finding them takes a second or two for 262,144 pieces, so the pairs are kept in the cache folder under the
hash of the vocabulary. Where nothing can be kept they are found anew each time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.env import cache_dir
from octavo.errors import ConfigError, TokenizerError
from octavo.observe.logging import LOGGER

MergePairs = NDArray[np.int32]  # [num_merges, 2] token ids, best first

_LONGEST_PIECE = 1000  # the work grows with the square of the length; real pieces stay below a hundred
_FORMAT = b"merges 1"  # change it when the pairs of the same vocabulary would come out differently


def cached_merge_pairs(
    pieces: Sequence[str], scores: NDArray[np.float32], mergeable: NDArray[np.bool_], raw: memoryview
) -> MergePairs:
    """`merge_pairs`, remembered between runs. `raw` is the vocabulary's bytes in the model file."""
    key = hashlib.blake2b(_FORMAT, digest_size=16)
    for part in (raw, scores.tobytes(), mergeable.tobytes()):
        key.update(part)
    try:
        path = cache_dir() / f"merges-{key.hexdigest()}.npy"
    except ConfigError:  # no folder to keep them in, as in a read-only home
        return merge_pairs(pieces, scores, mergeable)
    pairs = _read(path, len(pieces))
    if pairs is None:
        pairs = merge_pairs(pieces, scores, mergeable)
        _write(path, pairs)
    return pairs


def merge_pairs(pieces: Sequence[str], scores: NDArray[np.float32], mergeable: NDArray[np.bool_]) -> MergePairs:
    """For each mergeable piece the pair that makes it, best score first, ties by id."""
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
    """The two parts that the encoder joins last to make the piece; None if it never gets there."""
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
    """None if there is no such file, or if it is not what was written."""
    try:
        pairs = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if pairs.dtype != np.int32 or pairs.ndim != 2 or pairs.shape[1] != 2:
        return None
    in_range = pairs.size == 0 or (int(pairs.min()) >= 0 and int(pairs.max()) < num_pieces)
    return pairs if in_range else None


def _write(path: Path, pairs: MergePairs) -> None:
    """Keep them if that is possible: a full disk, or one that may not be written, costs the next start its second."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, pairs)
        partial.replace(path)
    except OSError as error:
        LOGGER.info("the tokenizer's merges cannot be kept in %s: %s", path.parent, error)
        with suppress(OSError):
            partial.unlink(missing_ok=True)
