"""The tokens that top_p, top_k and min_p keep of a row, found by bisection: nothing is sorted.

Bisection is on the bits of best - score, a non-negative float: its bits order like integers, so the result is exact,
ties included. It runs in registers over a row's best segments (`cut_of_head`), or over the whole row (`cut_of_row`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.sampling.edited_rows import load_row
from octavo.kernels.triton.sampling.entries import load_float, load_int, with_constants
from octavo.kernels.triton.sampling.logits_scan import score_of
from octavo.sampling.columns import WORDS

TOP_P = tl.constexpr(WORDS["top_p"])
TOP_K = tl.constexpr(WORDS["top_k"])
MIN_P = tl.constexpr(WORDS["min_p"])

#: bits of the largest finite float: tokens that cannot be drawn have a larger distance
FINITE_KEY = 0x7F7FFFFF


@with_constants
def load_filters(entries, i):
    """Entry i's filters, as the functions here take them."""
    return load_float(entries, i, TOP_P), load_int(entries, i, TOP_K), load_float(entries, i, MIN_P)


@triton.jit
def can_cut(filters, vocab):
    top_p, top_k, min_p = filters
    return (top_p < 1.0) | ((top_k > 0) & (top_k < vocab)) | (min_p > 0.0)


@triton.jit
def distance(scores, best):
    """best - score, and its bits: 0 for the best, larger for worse, above FINITE for tokens that cannot be drawn."""
    away = tl.where(scores == best, 0.0, best - scores)
    return away, away.to(tl.int32, bitcast=True)


@triton.jit
def cut_of_head(key, mass, filters, known, total, vocab, FINITE: tl.constexpr):
    """The masses of a row's best tokens, 0 where a filter cuts, and whether these hold every token that is kept. They
    include every token with a key below `known`. total: the mass of the whole row."""
    top_p, _top_k, _min_p = filters
    limit = limit_in(key, filters, vocab, FINITE)
    complete = (limit < known) | (known > FINITE)
    mass = tl.where(key <= limit, mass, 0.0)
    kept = tl.sum(tl.sum(mass, 1).to(tl.float64), 0)
    if (limit == FINITE) & (known <= FINITE):
        # top_p alone: its share is of the whole row
        kept = total
        complete = tl.full([], 1, tl.int1)
    if top_p < 1.0:
        goal = tl.maximum(top_p.to(tl.float64) * kept, 1e-300)
        low = pivot_in(key, mass, goal, limit)
        complete = complete & ((low < known) | (known > FINITE))
        above = tl.sum(tl.sum(tl.where(key < low, mass, 0.0), 1).to(tl.float64), 0)
        tied = (key == low) & (mass > 0)
        weight = tl.exp(-low.to(tl.float32, bitcast=True)).to(tl.float64)
        rank = tl.cumsum(tied.to(tl.int32), 1) - 1
        in_row = tl.sum(tied.to(tl.int32), 1)
        rank += (tl.cumsum(in_row, 0) - in_row)[:, None]
        stays = (key < low) | (tied & (above + rank.to(tl.float64) * weight < goal))
        mass = tl.where(stays, mass, 0.0)
    return mass, complete


@triton.jit
def cut_of_row(where, filters, FINITE: tl.constexpr, TILE: tl.constexpr, EDITS: tl.constexpr):
    """(pivot, num_tied): the filters keep the tokens with keys below the pivot, and the first num_tied with its key."""
    top_p, top_k, min_p = filters
    limit = _min_p_key(min_p)
    if (top_k > 0) & (top_k < where[7]):
        limit = tl.minimum(limit, _pivot_of_row(where, top_k.to(tl.float64), FINITE, FINITE, True, TILE, EDITS))
    pivot = limit + 1
    num_tied = 0
    if top_p < 1.0:
        kept, above, _above = _mass_below(where, pivot, pivot, pivot, limit, False, TILE, EDITS)
        goal = tl.maximum(top_p.to(tl.float64) * kept, 1e-300)
        pivot = _pivot_of_row(where, goal, limit, limit, False, TILE, EDITS)
        above, _above, _kept = _mass_below(where, pivot, pivot, pivot, limit, False, TILE, EDITS)
        # the tied tokens that stay: as many as start before the goal
        weight = tl.exp(-pivot.to(tl.float32, bitcast=True)).to(tl.float64)
        num_tied = tl.minimum(tl.ceil((goal - above) / weight), 1e9).to(tl.int32)
    return pivot, num_tied


@triton.jit
def limit_in(key, filters, vocab, FINITE: tl.constexpr):
    """The largest key [A, B] that top_k and min_p keep."""
    _top_p, top_k, min_p = filters
    limit = _min_p_key(min_p)
    if (top_k > 0) & (top_k < vocab):
        one = tl.full(key.shape, 1.0, tl.float32)
        limit = tl.minimum(limit, pivot_in(key, one, top_k.to(tl.float64), FINITE))
    return limit


@triton.jit
def _min_p_key(min_p):
    """The largest key that min_p keeps."""
    key = tl.full([], 0x7F7FFFFF, tl.int32)
    if min_p > 0.0:
        key = (0.0 - tl.log(min_p.to(tl.float64)).to(tl.float32)).to(tl.int32, bitcast=True)
    return key


@triton.jit
def pivot_in(key, mass, goal, limit):
    """The largest pivot up to `limit` such that the mass of the keys below it falls short of the goal. With goal k and
    masses of 1, this is the k-th smallest key."""
    low = tl.full([], 0, tl.int32)
    high = tl.zeros_like(low) + limit
    for _turn in range(31):
        middle = low + (high - low) // 2 + (high - low) % 2
        is_short = tl.sum(tl.sum(tl.where(key < middle, mass, 0.0), 1).to(tl.float64), 0) < goal
        low = tl.where(is_short, middle, low)
        high = tl.where(is_short, high, tl.maximum(middle - 1, low))
    return low


@triton.jit
def _pivot_of_row(where, goal, high_limit, mass_limit, COUNT: tl.constexpr, TILE: tl.constexpr, EDITS: tl.constexpr):
    """`pivot_in` over the whole row. Reading it is the cost, so each turn tries three pivots."""
    low = tl.full([], 0, tl.int32)
    high = tl.zeros_like(low) + high_limit
    for _turn in range(17):
        step = (high - low) // 4 + 1
        second = low + tl.minimum(2 * step, high - low)
        third = low + tl.minimum(3 * step, high - low)
        a, b, c = _mass_below(where, low + step, second, third, mass_limit, COUNT, TILE, EDITS)
        low, high = _narrow(
            low, high, step, (a < goal).to(tl.int32) + (b < goal).to(tl.int32) + (c < goal).to(tl.int32)
        )
    return low


@triton.jit
def _narrow(low, high, step, num_short):
    """The remaining range of pivots, after the first num_short of three fell short."""
    span = high - low
    new_low = low + tl.minimum(num_short * step, span)
    new_high = tl.where(num_short == 3, high, low + tl.minimum((num_short + 1) * step - 1, span))
    return new_low, tl.maximum(new_high, new_low)


@triton.jit
def _mass_below(where, p, q, r, limit, COUNT: tl.constexpr, TILE: tl.constexpr, EDITS: tl.constexpr):
    """The mass (with COUNT, the number) of the row's tokens with keys up to `limit` and below each of three pivots."""
    a = tl.zeros([TILE], tl.float32)
    b = tl.zeros([TILE], tl.float32)
    c = tl.zeros([TILE], tl.float32)
    for start in range(0, where[7], TILE):
        weight, key = tile_of(where, start, TILE, EDITS)
        if COUNT:
            weight = tl.full([TILE], 1.0, tl.float32)
        weight = tl.where(key <= limit, weight, 0.0)
        a += tl.where(key < p, weight, 0.0)
        b += tl.where(key < q, weight, 0.0)
        c += tl.where(key < r, weight, 0.0)
    return tl.sum(a.to(tl.float64), 0), tl.sum(b.to(tl.float64), 0), tl.sum(c.to(tl.float64), 0)


@triton.jit
def tile_of(where, start, TILE: tl.constexpr, EDITS: tl.constexpr):
    logits, row, stride, edited, edited_stride, i, is_edited, vocab, temperature, best = where
    at = start + tl.arange(0, TILE)
    x = load_row(logits, row, stride, edited, edited_stride, i, is_edited, at, at < vocab, EDITS)
    away, key = distance(score_of(x, temperature), best)
    return tl.exp(-away), key
