"""From a backend's arrays to the LogprobRow that a StepResult carries.

Positions may want different numbers of best tokens. Those that want the same number share one call, so that
a single request for the whole vocabulary does not make every other one pay for it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.ops import CompiledModel, IntArray, Logits
from octavo.messages import LogprobRow


def logprob_rows(
    model: CompiledModel, logits: Logits, tokens: IntArray, counts: NDArray[np.integer]
) -> list[LogprobRow]:
    """One row per position: the token chosen there, then the counts[i] best, -1 being the whole vocabulary.

    logits: [N, V]; tokens, counts: [N]. A position without a token (-1: nothing could be drawn) has an empty
    row of rank 0.
    """
    rows = [LogprobRow([], [], 0)] * len(tokens)
    vocab_size = logits.shape[1]
    for count in np.unique(counts).tolist():
        positions = np.flatnonzero((counts == count) & (tokens >= 0))
        if not len(positions):
            continue
        chosen = logits if len(positions) == len(tokens) else logits[positions]
        ids, logprobs, ranks = model.top_logprobs(chosen, tokens[positions], vocab_size if count == -1 else count)
        for i, *row in zip(positions.tolist(), ids.tolist(), logprobs.tolist(), ranks.tolist(), strict=True):
            rows[i] = LogprobRow(*row)
    return rows
