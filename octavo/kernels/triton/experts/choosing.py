"""A mixture's choice of experts, from the logits of some rows, and each expert's list of rows: parts of a kernel.

A row's choices are collected beside each other before any is written: so their atomic counts are all under way at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOWEST = tl.constexpr(-1e30)  # a valid expert's least rank: below it are experts that may not be chosen
_TAKEN = tl.constexpr(-(1 << 31))  # below the key of any rank


@triton.jit
def choose_and_list(
    logits, m, e, router_bias_ptr, bias_ptr, ids_ptr, weights_ptr, counts_ptr, order_ptr, loads_ptr, places_ptr,
    real_ptr, num_rows, max_rows, scale, first_expert, num_own, num_real,
    E: tl.constexpr, EPAD: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr, RENORMALISES: tl.constexpr,
    GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, SUMS_TWO: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_ROUTER_BIAS: tl.constexpr, LISTS: tl.constexpr, PLACES: tl.constexpr, REAL_ENDS: tl.constexpr,
):  # fmt: skip
    """The choices of rows m by their logits [rows, EPAD]: ids, weights, and the pairs in their experts' lists."""
    scores = _scores(logits, e, router_bias_ptr, E, SIGMOID, HAS_ROUTER_BIAS)
    ranked = scores
    if HAS_BIAS:
        ranked += tl.load(bias_ptr + e, mask=e < E, other=0.0).to(tl.float32)[None, :]
    ranked = tl.where((e < E)[None, :], tl.where(ranked > _LOWEST, ranked, _LOWEST), float("-inf"))
    if TOP_GROUPS < GROUPS:
        ranked = _in_best_groups(ranked, e, E, EPAD, GROUPS, TOP_GROUPS, SUMS_TWO)
    place = tl.arange(0, triton.next_power_of_2(TOP_K))[None, :]
    best, weights = _best(ranked, scores, e, place, EPAD, TOP_K)
    total = tl.sum(weights, 1)[:, None]
    weights *= scale
    if RENORMALISES:
        weights /= total + 1e-20
    inside, pair = m < num_rows, m[:, None] * TOP_K + place
    is_pair = inside[:, None] & (place < TOP_K)
    if PLACES > 0:
        is_real = _is_real(real_ptr, m, inside, num_real, REAL_ENDS)
        tl.atomic_add(loads_ptr + best, 1, mask=is_pair & is_real[:, None], sem="relaxed")
        slots = places_ptr + best * PLACES
        best = tl.load(slots + 1 + (0 if PLACES == 2 else m[:, None] % tl.load(slots)))  # 2: no expert has copies
    tl.store(ids_ptr + pair, best, mask=is_pair)
    tl.store(weights_ptr + pair, weights, mask=is_pair)
    if LISTS:
        local = best - first_expert
        is_own = is_pair & (local >= 0) & (local < num_own)
        at = tl.atomic_add(counts_ptr + local, 1, mask=is_own, sem="relaxed")
        tl.store(order_ptr + local.to(tl.int64) * max_rows + at, pair, mask=is_own)


@triton.jit
def _best(ranked, scores, e, place, EPAD: tl.constexpr, TOP_K: tl.constexpr):
    """Each row's best experts and their scores, best first, where `place` says; of equal experts the first is better.

    Floats are compared as integers of the same order, since a warp finds the largest of those in one instruction."""
    bits = ranked.to(tl.int32, bitcast=True)
    key, score_bits = bits ^ ((bits >> 31) & 0x7FFFFFFF), scores.to(tl.int32, bitcast=True)  # no score is below 0
    best = tl.zeros([ranked.shape[0], place.shape[1]], tl.int32)
    best_score = best
    for turn in tl.static_range(TOP_K):
        first = tl.min(tl.where(key == tl.max(key, 1)[:, None], e[None, :], EPAD), 1)
        is_best = e[None, :] == first[:, None]
        score = tl.max(tl.where(is_best, score_bits, 0), 1)
        best = tl.where(place == turn, first[:, None], best)
        best_score = tl.where(place == turn, score[:, None], best_score)
        key = tl.where(is_best, _TAKEN, key)
    return best, best_score.to(tl.float32, bitcast=True)


@triton.jit
def _is_real(real_ptr, m, inside, num_real, ENDS: tl.constexpr):
    """Whether rows m are counted: see `Placing`."""
    if ENDS:
        return inside & (m < tl.load(real_ptr))
    listed = inside & (m < num_real)
    return listed & ((m == 0) | (tl.load(real_ptr + m, mask=listed, other=0) > 0))


@triton.jit
def _scores(logits, e, router_bias_ptr, E: tl.constexpr, SIGMOID: tl.constexpr, HAS_ROUTER_BIAS: tl.constexpr):
    if HAS_ROUTER_BIAS:
        logits += tl.load(router_bias_ptr + e, mask=e < E, other=0.0).to(tl.float32)[None, :]
    if SIGMOID:
        return tl.sigmoid(logits)
    logits = tl.where((e < E)[None, :], logits, float("-inf"))
    scores = tl.exp(logits - tl.max(logits, 1)[:, None])
    return scores / tl.sum(scores, 1)[:, None]


@triton.jit
def _first_best(ranked, e, EPAD: tl.constexpr):
    """Of equal experts the first."""
    return tl.min(tl.where(ranked == tl.max(ranked, 1)[:, None], e[None, :], EPAD), 1)


@triton.jit
def _in_best_groups(
    ranked, e, E: tl.constexpr, EPAD: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr,
    SUMS_TWO: tl.constexpr,
):  # fmt: skip
    """ranked, with -inf for the experts of all groups but the best."""
    group = e // (E // GROUPS)
    group_score = tl.full(ranked.shape, float("-inf"), tl.float32)  # of each expert's group
    for g in tl.static_range(GROUPS):
        in_group = tl.where((group == g)[None, :], ranked, float("-inf"))
        score = tl.max(in_group, 1)
        if SUMS_TWO:
            first = _first_best(in_group, e, EPAD)
            score += tl.max(tl.where(e[None, :] == first[:, None], float("-inf"), in_group), 1)
        group_score = tl.where((group == g)[None, :], score[:, None], group_score)
    result = tl.full(ranked.shape, float("-inf"), tl.float32)
    for _ in tl.static_range(TOP_GROUPS):
        best = group[None, :] == (_first_best(group_score, e, EPAD) // (E // GROUPS))[:, None]
        result = tl.where(best, ranked, result)
        group_score = tl.where(best, float("-inf"), group_score)
    return result
