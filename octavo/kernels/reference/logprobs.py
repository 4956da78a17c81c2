"""Log-probabilities of logits, or the logits themselves: the specification of `CompiledModel.top_logprobs`, in numpy.

Tokens are ordered best first, the lower id first among equals; a token's rank is its place in that order,
from 1. So the k best tokens have ranks 1 .. k, and the greedy choice always has rank 1.

Tokens of +inf share the whole mass. A NaN anywhere in the row makes all its log-probabilities NaN; to order the tokens,
NaNs count as -inf.
"""

from __future__ import annotations

import numpy as np

from octavo.kernels.arrays import FloatArray, IntArray


def top_logprobs(
    logits: FloatArray, tokens: IntArray, k: int, *, as_logits: bool = False
) -> tuple[IntArray, FloatArray, IntArray]:
    """[N, V] logits and the N chosen tokens -> ids and logprobs [N, k + 1], the chosen token first and then the k best,
    and the chosen tokens' ranks [N]. as_logits: logits in place of log-probabilities."""
    num_rows, vocab_size = logits.shape
    assert 0 <= k <= vocab_size, f"{k} best tokens of {vocab_size}"
    ids = np.empty((num_rows, k + 1), np.int32)
    logprobs = np.empty((num_rows, k + 1), np.float32)
    ranks = np.empty(num_rows, np.int32)
    for i, (row, token) in enumerate(zip(logits, tokens, strict=True)):
        ordered = np.where(np.isnan(row), np.float32(-np.inf), row)
        ids[i, 0] = token
        ids[i, 1:] = _best_tokens(ordered, k)
        logprobs[i] = row[ids[i]] if as_logits else _logprobs(row, ids[i])
        chosen = ordered[token]
        ranks[i] = 1 + np.count_nonzero(ordered > chosen) + np.count_nonzero(ordered[:token] == chosen)
    return ids, logprobs, ranks


def _best_tokens(row: FloatArray, k: int) -> IntArray:
    if k == 0:
        return np.empty(0, np.int32)
    threshold = np.partition(row, -k)[-k]
    candidates = np.flatnonzero(row >= threshold)
    return candidates[np.argsort(-row[candidates], kind="stable")][:k].astype(np.int32)


def _logprobs(row: FloatArray, ids: IntArray) -> FloatArray:
    best = row.max()
    if np.isinf(best):
        among_best = -np.log(np.float32(np.count_nonzero(row == best))) if best > 0 else np.float32(-np.inf)
        return np.where(row[ids] == best, among_best, np.float32(-np.inf))
    with np.errstate(over="ignore"):  # too far below the best for float32 becomes -inf
        away = row.astype(np.float64) - float(best)  # the mass's logarithm may be too small to add to the best
        logprobs: FloatArray = (away[ids] - np.log(np.sum(np.exp(away)))).astype(np.float32)
    return logprobs
