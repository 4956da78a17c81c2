"""The executable specification of sampling, in numpy, one entry at a time.

    logits row ── edit ──> logits ── temperature 0 ──> the best token; of equals, the lowest id
                 allowed      │
                 mask         │
                 banned       └─ / temperature, - best ──> scores (0 is the best token)
                 bias              │
                 penalties         ├─ min_p   scores of at least log(min_p)
                                   ├─ top_k   scores of at least the k-th best, ties included
                                   ├─ top_p   best first, lower ids first among equals, until top_p of
                                   │          the mass still kept is reached; the best always stays
                                   └─ draw    the first token in id order whose cumulative mass exceeds
                                              u * (mass kept); see `random.py` for u

Scores are float32, so that every implementation compares the same numbers; masses are exp(score), summed
in float64. Another implementation may round exp to float32: a token then differs where u falls within
about 1e-7 of a boundary between two tokens, and nowhere else.

A token of logit -inf cannot be drawn; tokens of +inf share the whole mass. The result is -1 if the row has a NaN or no
token is left to draw, also when penalties or the temperature push all logits below the range of float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.reference.random import uniform
from octavo.sampling.columns import SamplingBatch


def sample(logits: FloatArray, batch: SamplingBatch) -> IntArray:
    """One token per entry of the batch. `logits` [M, V] is not changed."""
    draws = uniform(batch.seeds, batch.sample_indices, batch.positions)
    return np.array([_sample_entry(logits, batch, i, draws[i]) for i in range(len(draws))], np.int32)


def token_weights(logits: FloatArray, batch: SamplingBatch, i: int) -> NDArray[np.float64]:
    """Each token's mass for entry i, which has a temperature: 0 for tokens that cannot be drawn. Not normalised."""
    edited = edited_logits(logits, batch, i)
    scores = _scores(edited, batch.temperature[i])
    return np.where(_kept(scores, batch, i), np.exp(scores.astype(np.float64)), 0.0)


def processed_logits(logits: FloatArray, batch: SamplingBatch) -> FloatArray:
    """The logits [N, V] of the distribution that each entry draws from: divided by its temperature, -inf for tokens
    that are not kept; only edited if the temperature is 0. Rows of entries that can draw no token are undefined."""
    rows = [_processed(edited_logits(logits, batch, i), batch, i) for i in range(len(batch.logits_rows))]
    return np.array(rows, np.float32).reshape(len(rows), logits.shape[1])


def edited_logits(logits: FloatArray, batch: SamplingBatch, i: int) -> FloatArray:
    """Entry i's logits after allowed tokens, mask, banned tokens, bias and penalties: a new row."""
    row: FloatArray = logits[batch.logits_rows[i]].copy()
    allowed = _run(batch.allowed, batch.allowed_offsets, i)
    if len(allowed):
        forbidden = np.ones(len(row), bool)
        forbidden[allowed] = False
        row[forbidden] = -np.inf
    mask = _run(batch.mask, batch.mask_offsets, i)
    if len(mask):
        row[np.unpackbits(mask.view(np.uint8), count=len(row), bitorder="little") == 0] = -np.inf
    row[_run(batch.banned, batch.banned_offsets, i)] = -np.inf
    row[_run(batch.bias_ids, batch.bias_offsets, i)] += _run(batch.bias_values, batch.bias_offsets, i)
    with np.errstate(over="ignore"):
        _apply_penalties(row, batch, i)
    return row


def _processed(edited: FloatArray, batch: SamplingBatch, i: int) -> FloatArray:
    temperature = batch.temperature[i]
    if temperature == 0.0:
        return edited
    kept = _kept(_scores(edited, temperature), batch, i)
    with np.errstate(over="ignore"):
        return np.where(kept, edited / temperature, np.float32(-np.inf))


def _sample_entry(logits: FloatArray, batch: SamplingBatch, i: int, u: np.float64) -> int:
    if np.isnan(logits[batch.logits_rows[i]]).any():
        return -1
    if batch.temperature[i] == 0.0:
        edited = edited_logits(logits, batch, i)
        best = int(np.argmax(edited))
        return best if edited[best] > -np.inf else -1
    cumulative = np.cumsum(token_weights(logits, batch, i))
    total = cumulative[-1]
    if total == 0.0:
        return -1
    # u * total may round up to total: then it is the last token with any mass
    token = min(np.searchsorted(cumulative, u * total, side="right"), np.searchsorted(cumulative, total))
    return int(token)


def _apply_penalties(row: FloatArray, batch: SamplingBatch, i: int) -> None:
    """Repetition on every distinct token of the history; frequency per output occurrence; presence per distinct
    output token. Computed in float64 and rounded once, so that fused multiply-adds elsewhere agree."""
    history = _run(batch.history, batch.history_offsets, i)
    seen = np.unique(history)
    penalty, values = np.float64(batch.repetition_penalty[i]), row[seen].astype(np.float64)
    row[seen] = np.where(values > 0, values / penalty, values * penalty)

    generated, counts = np.unique(history[batch.prompt_lens[i] :], return_counts=True)
    lowered = row[generated].astype(np.float64)
    lowered -= np.float64(batch.frequency_penalty[i]) * counts
    row[generated] = lowered - np.float64(batch.presence_penalty[i])


def _scores(edited: FloatArray, temperature: np.float32) -> FloatArray:
    """Logits divided by the temperature, relative to the best token's; all -inf if there is no token."""
    with np.errstate(over="ignore"):
        scaled = edited / temperature
    best = scaled.max()
    if np.isinf(best):
        return np.where(scaled == np.inf, np.float32(0), np.float32(-np.inf))
    with np.errstate(over="ignore"):
        return np.asarray(scaled - best, np.float32)


def _kept(scores: FloatArray, batch: SamplingBatch, i: int) -> NDArray[np.bool_]:
    """Which tokens min_p, top_k and top_p leave."""
    kept: NDArray[np.bool_] = scores > -np.inf
    if batch.min_p[i] > 0.0:
        kept &= scores >= np.float32(np.log(np.float64(batch.min_p[i])))
    top_k = int(batch.top_k[i])
    if 0 < top_k < len(scores):
        kept &= scores >= np.partition(scores, -top_k)[-top_k]
    if batch.top_p[i] < 1.0:
        weights = np.where(kept, np.exp(scores.astype(np.float64)), 0.0)
        order = np.argsort(-scores, kind="stable")
        cumulative = np.cumsum(weights[order])
        reached = np.concatenate(([False], cumulative[:-1] >= np.float64(batch.top_p[i]) * cumulative[-1]))
        kept[order[reached]] = False
    return kept


def _run(values: NDArray[np.generic], offsets: IntArray, i: int) -> NDArray[np.generic]:
    return values[offsets[i] : offsets[i + 1]]
