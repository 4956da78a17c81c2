"""Attention scores as all kernels in Triton compute them: in base 2, capped if the layer has a softcap, or -inf."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def finite(m):
    """The number to subtract from scores with maximum m, which is -inf for a row that has seen no key yet."""
    return tl.where(m == -float("inf"), 0.0, m)


@triton.jit
def cap_scores(scores, softcap, SOFTCAP: tl.constexpr):
    """c * tanh(score / c); scores include a factor of log2(e), before and after, because they feed exp2."""
    if SOFTCAP:
        c = softcap * 1.4426950408889634
        e = tl.exp2(-2.885390081777927 * tl.abs(scores / c))
        magnitude = (1 - e) / (1 + e) * c
        scores = tl.where(scores < 0, -magnitude, magnitude)
    return scores


@triton.jit
def sum_with_sink(l, m, sinks, head, mask, HAS_SINKS: tl.constexpr):
    """The softmax's sum with the head's sink, which has no value. m: the largest score. head: of all rows or each."""
    if HAS_SINKS:
        l += tl.exp2(tl.load(sinks + head, mask=mask, other=0.0) * 1.4426950408889634 - finite(m))
    return l


@triton.jit
def score_box(q, k, t, begin, end, scale_log2, softcap, SOFTCAP: tl.constexpr, BY_ROW: tl.constexpr):
    """Of keys at the tokens t. begin, end: the visible tokens, for all rows or, as [ROWS, 1], for each."""
    scores = cap_scores(tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2, softcap, SOFTCAP)
    seen = (t[None, :] >= begin) & (t[None, :] < end) if BY_ROW else ((t >= begin) & (t < end))[None, :]
    return tl.where(seen, scores, -float("inf"))
