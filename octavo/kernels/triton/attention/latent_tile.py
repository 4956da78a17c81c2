"""One program's work over latents: the softmax of a tile's queries over a run of tokens, each of which is read once.

A latent and its rotated key are two products: R and P are powers of two in every published model, and R + P is none.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.attention.codes import loaded, unit
from octavo.kernels.triton.attention.scores import finite


@triton.jit
def attend_to_latents(
    q, q_turned, start, stop, position, table, pool, block_stride, scales, scale_log2,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr, ROTARY: tl.constexpr, ROTARY_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr, HAS_CODES: tl.constexpr, IS_FLOAT: tl.constexpr,
):  # fmt: skip
    """Maximum, sum and weighted latents of the tokens start .. stop - 1. q [ROWS, RANK_PAD], q_turned
    [ROWS, ROTARY_PAD]. Always masked, and with fma where a sum could be rounded in two ways: a fixed order of sums
    needs it."""
    latent_unit = unit(scales, 1, HAS_CODES, IS_FLOAT)
    key_unit = unit(scales, 0, HAS_CODES, IS_FLOAT)
    d = tl.arange(0, RANK_PAD)
    p = tl.arange(0, ROTARY_PAD)
    m = tl.full([ROWS], -float("inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, RANK_PAD], tl.float32)
    for first in range(start, stop, KEYS):
        t = first + tl.arange(0, KEYS)
        in_cache = t < stop
        block = tl.load(table + t // BLOCK_SIZE, mask=in_cache, other=0).to(tl.int64)
        cell = (pool + block * block_stride + (t % BLOCK_SIZE) * (RANK + ROTARY))[:, None]
        c = loaded(tl.load(cell + d[None, :], mask=in_cache[:, None] & (d < RANK)[None, :], other=0.0), q.dtype)
        k = tl.load(cell + RANK + p[None, :], mask=in_cache[:, None] & (p < ROTARY)[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(c), input_precision="ieee")
        if HAS_CODES:
            scores *= latent_unit / key_unit
        scores = tl.dot(q_turned, tl.trans(loaded(k, q.dtype)), scores, input_precision="ieee")
        scores *= scale_log2 * key_unit
        seen = (t[None, :] <= position[:, None]) & in_cache[None, :]
        scores = tl.where(seen, scores, -float("inf"))
        top = tl.maximum(m, tl.max(scores, 1))
        weights = tl.exp2(scores - finite(top)[:, None])
        alpha = tl.exp2(m - finite(top))
        l = tl.fma(l, alpha, tl.sum(weights, 1))
        acc = tl.dot(weights.to(c.dtype), c, acc * alpha[:, None], input_precision="ieee")
        m = top
    if HAS_CODES:
        acc *= latent_unit
    return m, l, acc
