"""The router of a mixture: its product, the choice of experts, and each expert's list of rows, in one launch.

few rows    a program has a few experts of one row; the one that ends last makes the row's choice
many rows   a program has all experts of a tile of rows, and makes their choices

A choice is a pair (row, place among the row's experts), numbered row * K + place. Each pair is appended to its expert's
list, by an atomic count; so the order in a list differs from run to run, but no result does. `combine`, the last launch
of a mixture, sets the counts back to zero.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import FEW_MIXTURE_ROWS
from octavo.kernels.mixture import Mixture
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.experts.placing import Placing
from octavo.kernels.triton.experts.room import Room

_FEW_EXPERTS = 8  # of a program, with few rows
_LOWEST = tl.constexpr(-1e30)  # a valid expert's least rank: below it are experts that may not be chosen


def route(
    x: torch.Tensor, router: torch.Tensor, router_bias: torch.Tensor | None, bias: torch.Tensor | None,
    layer: Mixture, room: Room, *, has_lists: bool, is_fixed: bool, chained: bool, placing: Placing | None = None,
) -> None:  # fmt: skip
    """Fill the room's choices for the rows of x [T, H]. router [E, H]. bias [E]: of the choice. has_lists: with each
    expert's list. is_fixed: sums do not depend on the number of rows. placing: with it, choices are slots."""
    num_rows, hidden = x.shape
    routing, is_few = layer.routing, num_rows <= FEW_MIXTURE_ROWS and not is_fixed
    experts = triton.next_power_of_2(routing.num_experts)
    shape = {"BM": 1, "BE": min(_FEW_EXPERTS, experts), "BK": triton.next_power_of_2(min(hidden, 1024))}
    if not is_few:
        shape = {"BM": 32 if num_rows < 4096 or is_fixed else 64, "BE": max(16, experts), "BK": 64}
    grid = (num_rows, triton.cdiv(experts, shape["BE"])) if is_few else (triton.cdiv(num_rows, shape["BM"]), 1)
    loads, places, real = (room.ids,) * 3 if placing is None else (placing.loads, placing.places, placing.real)
    _route_kernel[grid](
        x, router, router if router_bias is None else router_bias, router if bias is None else bias,
        room.logits, room.arrived, room.ids, room.weights, room.counts, room.order,
        loads, places, real, num_rows, room.max_rows, routing.scale, x.stride(0), layer.first_expert, layer.num_own,
        len(real),
        H=hidden, E=routing.num_experts, EPAD=max(16, experts), TOP_K=routing.num_chosen,
        SIGMOID=routing.scoring == "sigmoid", RENORMALISES=routing.renormalises, GROUPS=routing.num_groups,
        TOP_GROUPS=routing.top_groups, SUMS_TWO=routing.group_score == "sum_of_two", HAS_BIAS=bias is not None,
        HAS_ROUTER_BIAS=router_bias is not None, IS_FEW=is_few, LISTS=has_lists,
        PLACES=0 if placing is None else places.shape[1], REAL_ENDS=placing is not None and placing.ends, **shape,
        CHAINED=chained, launch_pdl=chained, num_warps=4 if is_few else 8,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "max_rows", "first_expert", "num_own", "num_real"])
def _route_kernel(
    x_ptr, router_ptr, router_bias_ptr, bias_ptr, logits_ptr, arrived_ptr, ids_ptr, weights_ptr, counts_ptr, order_ptr,
    loads_ptr, places_ptr, real_ptr, num_rows, max_rows, scale, x_stride, first_expert, num_own, num_real,
    H: tl.constexpr, E: tl.constexpr, EPAD: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr,
    RENORMALISES: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, SUMS_TWO: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_ROUTER_BIAS: tl.constexpr, IS_FEW: tl.constexpr, LISTS: tl.constexpr,
    PLACES: tl.constexpr, REAL_ENDS: tl.constexpr,
    BM: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_previous(CHAINED)
    e = tl.arange(0, EPAD)
    if IS_FEW:
        row = tl.program_id(0).to(tl.int64)
        own = tl.program_id(1) * BE + tl.arange(0, BE)
        some = _row_logits(x_ptr + row * x_stride, router_ptr, own, H, E, BE, BK)
        tl.store(logits_ptr + row * EPAD + own, some, mask=own < E)
        tl.debug_barrier()
        last = tl.atomic_add(arrived_ptr + row, 1, sem="acq_rel") == tl.num_programs(1) - 1
        if last:
            tl.store(arrived_ptr + row, 0)
            m = row + tl.arange(0, BM)
            logits = tl.load(logits_ptr + m[:, None] * EPAD + e[None, :], mask=(e < E)[None, :], cache_modifier=".cg")
            _choose_and_list(
                logits, m, e, router_bias_ptr, bias_ptr, ids_ptr, weights_ptr, counts_ptr, order_ptr, loads_ptr,
                places_ptr, real_ptr, num_rows, max_rows, scale, first_expert, num_own, num_real, E, EPAD, TOP_K,
                SIGMOID, RENORMALISES, GROUPS, TOP_GROUPS, SUMS_TWO, HAS_BIAS, HAS_ROUTER_BIAS, LISTS, PLACES,
                REAL_ENDS,
            )  # fmt: skip
    else:
        m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
        logits = _tile_logits(x_ptr, router_ptr, m, e, num_rows, x_stride, H, E, EPAD, BM, BK)
        _choose_and_list(
            logits, m, e, router_bias_ptr, bias_ptr, ids_ptr, weights_ptr, counts_ptr, order_ptr, loads_ptr,
            places_ptr, real_ptr, num_rows, max_rows, scale, first_expert, num_own, num_real, E, EPAD, TOP_K,
            SIGMOID, RENORMALISES, GROUPS, TOP_GROUPS, SUMS_TWO, HAS_BIAS, HAS_ROUTER_BIAS, LISTS, PLACES, REAL_ENDS,
        )  # fmt: skip


@triton.jit
def _row_logits(x_ptr, router_ptr, own, H: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr):
    """[BE], of one row."""
    k = tl.arange(0, BK)
    total = tl.zeros([BE, BK], tl.float32)
    for start in tl.static_range(0, H, BK):
        inside = start + k < H
        cell = router_ptr + own[:, None] * H + (start + k)[None, :]
        w = tl.load(cell, mask=(own < E)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        total += w * tl.load(x_ptr + start + k, mask=inside, other=0.0).to(tl.float32)[None, :]
    return tl.sum(total, 1)


@triton.jit
def _tile_logits(
    x_ptr, router_ptr, m, e, num_rows, x_stride, H: tl.constexpr, E: tl.constexpr, EPAD: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """[BM, EPAD]."""
    k = tl.arange(0, BK)
    acc = tl.zeros([BM, EPAD], tl.float32)
    for start in range(0, H, BK):
        inside = start + k < H
        x = tl.load(
            x_ptr + m[:, None] * x_stride + (start + k)[None, :], mask=(m < num_rows)[:, None] & inside[None, :],
            other=0.0,
        )  # fmt: skip
        w = tl.load(
            router_ptr + e[None, :] * H + (start + k)[:, None], mask=(e < E)[None, :] & inside[:, None], other=0.0
        )
        acc = tl.dot(x, w, acc, input_precision="ieee")
    return acc


@triton.jit
def _choose_and_list(
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
    inside, total = m < num_rows, tl.zeros_like(tl.max(ranked, 1))
    if PLACES > 0:
        is_real = _is_real(real_ptr, m, inside, num_real, REAL_ENDS)
    for place in tl.static_range(TOP_K):
        best = _first_best(ranked, e, EPAD)
        is_best = e[None, :] == best[:, None]
        weight = tl.sum(tl.where(is_best, scores, 0.0), 1)
        total += weight
        ranked = tl.where(is_best, float("-inf"), ranked)
        pair = m * TOP_K + place
        if PLACES > 0:
            tl.atomic_add(loads_ptr + best, 1, mask=is_real, sem="relaxed")
            slots = places_ptr + best * PLACES
            best = tl.load(slots + 1 + (0 if PLACES == 2 else m % tl.load(slots)))  # 2: no expert has copies
        tl.store(ids_ptr + pair, best, mask=inside)
        tl.store(weights_ptr + pair, weight * scale, mask=inside)
        if LISTS:
            local = best - first_expert
            is_own = inside & (local >= 0) & (local < num_own)
            at = tl.atomic_add(counts_ptr + local, 1, mask=is_own, sem="relaxed")
            tl.store(order_ptr + local.to(tl.int64) * max_rows + at, pair.to(tl.int32), mask=is_own)
    if RENORMALISES:
        tl.debug_barrier()
        for place in tl.static_range(TOP_K):
            at = weights_ptr + m * TOP_K + place
            tl.store(at, tl.load(at, mask=inside, other=0.0) / (total + 1e-20), mask=inside)


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
