"""From a backend's arrays to the LogprobRow that a StepResult carries.

Entries of one step may want different numbers of best tokens. Those that want the same number share one call,
so that a single request for the whole vocabulary does not make every other entry pay for it.
"""

from __future__ import annotations

import numpy as np

from octavo.kernels.ops import CompiledModel, FloatArray, IntArray
from octavo.messages import LogprobRow
from octavo.sampling.sampler import NO_LOGPROBS


def sampled_logprobs(
    model: CompiledModel, logits: FloatArray, logits_rows: IntArray, tokens: IntArray, num_logprobs: IntArray
) -> dict[int, LogprobRow]:
    """Entry j -> its row, for the entries that ask for one and drew a token.

    Entry j drew tokens[j] from logits[logits_rows[j]] and reports num_logprobs[j] best tokens, -1 being all of
    them. An entry that failed (token -1) has no row.
    """
    wanted = np.where(tokens >= 0, num_logprobs, NO_LOGPROBS)
    result: dict[int, LogprobRow] = {}
    for count in np.unique(wanted[wanted != NO_LOGPROBS]).tolist():
        entries = np.flatnonzero(wanted == count)
        rows = position_logprobs(model, logits[logits_rows[entries]], tokens[entries], count)
        result.update(zip(entries.tolist(), rows, strict=True))
    return result


def position_logprobs(
    model: CompiledModel, logits: FloatArray, tokens: IntArray, num_logprobs: int
) -> list[LogprobRow]:
    """One row per position, such as a prompt's: the token that stands there and the `num_logprobs` best, -1 all."""
    vocab_size = logits.shape[1]
    k = vocab_size if num_logprobs == -1 else min(num_logprobs, vocab_size)
    ids, logprobs, ranks = model.top_logprobs(logits, tokens, k)
    return [LogprobRow(*row) for row in zip(ids.tolist(), logprobs.tolist(), ranks.tolist(), strict=True)]
