"""One program's work over latents: the softmax of a tile's queries over a run of tokens, each of which is read once.

A latent and its rotated key are two products: R and P are powers of two in every published model, and R + P is none.
And a latent is several pieces, whose products do not wait for each other: the scores of few rows are one long sum
otherwise.

    latent    piece 0 | piece 1 | ...      PIECES of WIDTH numbers
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.attention.codes import loaded, unit
from octavo.kernels.triton.attention.scores import finite


def piece_width(rank_pad: int) -> int:
    """rank_pad: of whole latents, a power of two."""
    return max(16, rank_pad // 4)


@triton.jit
def load_pieces(at, is_row, RANK: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr):
    """A tuple of [ROWS, WIDTH], from the rows at `at` [ROWS, 1]."""
    pieces = ()  # type: tuple[tl.tensor, ...]
    for i in tl.static_range(PIECES):
        d = i * WIDTH + tl.arange(0, WIDTH)
        pieces += (tl.load(at + d[None, :], mask=is_row[:, None] & (d < RANK)[None, :], other=0.0),)
    return pieces


@triton.jit
def attend_to_latents(
    q, q_turned, start, stop, position, table, pool, block_stride, scales, scale_log2,
    RANK: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, ROTARY: tl.constexpr, ROTARY_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr, HAS_CODES: tl.constexpr, IS_FLOAT: tl.constexpr,
):  # fmt: skip
    """Maximum, sum and weighted latents of the tokens start .. stop - 1. q: pieces, q_turned [ROWS, ROTARY_PAD]. Always
    masked, and with fma where a sum could be rounded in two ways: a fixed order of sums needs it."""
    latent_unit = unit(scales, 1, HAS_CODES, IS_FLOAT)
    key_unit = unit(scales, 0, HAS_CODES, IS_FLOAT)
    p = tl.arange(0, ROTARY_PAD)
    m = tl.full([ROWS], -float("inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)
    acc = ()  # type: tuple[tl.tensor, ...]
    for _piece in tl.static_range(PIECES):
        acc += (tl.zeros([ROWS, WIDTH], tl.float32),)
    for first in range(start, stop, KEYS):
        t = first + tl.arange(0, KEYS)
        in_cache = t < stop
        block = tl.load(table + t // BLOCK_SIZE, mask=in_cache, other=0).to(tl.int64)
        cell = (pool + block * block_stride + (t % BLOCK_SIZE) * (RANK + ROTARY))[:, None]
        stored = load_pieces(cell, in_cache, RANK, WIDTH, PIECES)
        k = tl.load(cell + RANK + p[None, :], mask=in_cache[:, None] & (p < ROTARY)[None, :], other=0.0)
        c = ()  # type: tuple[tl.tensor, ...]
        for i in tl.static_range(PIECES):
            c += (loaded(stored[i], q_turned.dtype, True),)
        scores = tl.dot(q_turned, tl.trans(loaded(k, q_turned.dtype, True)), input_precision="ieee")
        scores *= scale_log2 * key_unit
        for i in tl.static_range(PIECES):
            products = tl.dot(q[i], tl.trans(c[i]), input_precision="ieee")
            scores = tl.fma(products, tl.zeros_like(products) + scale_log2 * latent_unit, scores)
        seen = (t[None, :] <= position[:, None]) & in_cache[None, :]
        scores = tl.where(seen, scores, -float("inf"))
        top = tl.maximum(m, tl.max(scores, 1))
        weights = tl.exp2(scores - finite(top)[:, None])
        alpha = tl.exp2(m - finite(top))
        l = tl.fma(l, alpha, tl.sum(weights, 1))
        more = ()  # type: tuple[tl.tensor, ...]
        for i in tl.static_range(PIECES):
            added = tl.dot(weights.to(q_turned.dtype), c[i], acc[i] * alpha[:, None], input_precision="ieee")
            more += (added,)
        acc = more
        m = top
    if HAS_CODES:
        scaled = ()  # type: tuple[tl.tensor, ...]
        for i in tl.static_range(PIECES):
            scaled += (acc[i] * latent_unit,)
        acc = scaled
    return m, l, acc
