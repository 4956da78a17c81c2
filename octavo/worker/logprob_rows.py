"""From a backend's arrays to the LogprobRow that a StepResult carries.

Positions may want different numbers of best tokens. Those that want the same number share one call, so that
a single request for the whole vocabulary does not make every other one pay for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.device import CompiledModel, Logits
from octavo.kernels.ops import IntArray
from octavo.messages import LogprobRow


def logprob_rows(
    model: CompiledModel, logits: Logits, tokens: IntArray, counts: NDArray[np.integer], *, as_logits: bool
) -> list[LogprobRow]:
    """One row per position: the token chosen there, then the counts[i] best, -1 being the whole vocabulary.

    logits: [N, V]; tokens, counts: [N]. A position without a token (-1: nothing could be drawn) has an empty
    row of rank 0. as_logits: rows of logits in place of log-probabilities.
    """
    rows = [LogprobRow([], [], 0)] * len(tokens)
    vocab_size = logits.shape[1]
    for count in np.unique(counts).tolist():
        positions = np.flatnonzero((counts == count) & (tokens >= 0))
        if not len(positions):
            continue
        chosen = logits if len(positions) == len(tokens) else logits[positions]
        k = vocab_size if count == -1 else count
        ids, logprobs, ranks = model.top_logprobs(chosen, tokens[positions], k, as_logits=as_logits)
        for i, *row in zip(positions.tolist(), ids.tolist(), logprobs.tolist(), ranks.tolist(), strict=True):
            rows[i] = LogprobRow(*row)
    return rows


def with_scored_ids(
    model: CompiledModel,
    logits: Logits,
    rows: list[LogprobRow],
    scored_ids: Sequence[tuple[int, ...]],
    tile: int,
    *,
    as_logits: bool,
) -> list[LogprobRow]:
    """The rows with the log-probabilities of these ids after what they hold; `tile` of them are scored at once."""
    longer = list(rows)
    for i, ids in enumerate(scored_ids):
        if not ids or not rows[i].token_ids:
            continue
        logprobs: list[float] = []
        ranks: list[int] = []
        for start in range(0, len(ids), tile):
            some = np.array(ids[start : start + tile], np.int32)
            _, found, found_ranks = model.top_logprobs(logits[np.full(len(some), i)], some, 0, as_logits=as_logits)
            logprobs += found[:, 0].tolist()
            ranks += found_ranks.tolist()
        row = rows[i]
        longer[i] = replace(
            row, token_ids=[*row.token_ids, *ids], logprobs=[*row.logprobs, *logprobs], asked_ranks=ranks
        )
    return longer
