"""The router of a mixture: its product, the choice of experts, and each expert's list of rows, in one launch.

few rows    a program has a few experts of one row
many rows   a program has some experts of a tile of rows

Its logits go to memory, and of the programs of the same rows the one that ends last chooses (`choosing.py`).

A choice is a pair (row, place among the row's experts), numbered row * K + place. Each pair is put into its expert's
list, by an atomic count; so the order in a list differs from run to run, but no result does. `combine`, the last launch
of a mixture, sets the counts back to zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import FEW_MIXTURE_ROWS
from octavo.kernels.mixture import Mixture
from octavo.kernels.triton.chain import prefetch_to_l2, wait_for_previous
from octavo.kernels.triton.experts.choosing import choose_and_list
from octavo.kernels.triton.experts.placing import Placing
from octavo.kernels.triton.experts.room import Room

_FEW_EXPERTS = 8  # of a program, with few rows


class _Tile(NamedTuple):
    """Rows and experts of a program, inputs at a time, rows whose experts it chooses at a time, warps, and stages."""

    rows: int
    experts: int
    depth: int
    chosen_rows: int
    warps: int
    stages: int


#: most rows -> rows, experts and inputs of the tile that was fastest on an H200
_TILES = {640: (16, 32, 64), 1536: (16, 64, 64), 6144: (64, 32, 128)}
_MANY, _FIXED = (64, 128, 64), (64, 64, 64)


def _tile(num_rows: int, experts: int, hidden: int, dtype: torch.dtype, *, is_few: bool, is_fixed: bool) -> _Tile:
    """experts: padded. is_fixed: for any number of rows alike."""
    if is_few:
        return _Tile(1, min(_FEW_EXPERTS, experts), triton.next_power_of_2(min(hidden, 1024)), 1, 4, 3)
    if dtype == torch.float32:  # its products are no tensor cores'
        rows, part, depth = 16, 32, 64
    elif is_fixed:
        rows, part, depth = _FIXED
    else:
        rows, part, depth = next((tile for most, tile in _TILES.items() if num_rows <= most), _MANY)
    warps = 8 if rows > 16 or experts > 128 else 4
    chosen_rows = 32 if rows > 16 and experts <= 128 else 16
    return _Tile(rows, min(part, experts), depth, chosen_rows, warps, 3 if rows > 16 else 6 - part // 32)


def route(
    x: torch.Tensor, router: torch.Tensor, router_bias: torch.Tensor | None, bias: torch.Tensor | None,
    layer: Mixture, room: Room, *, has_lists: bool, is_fixed: bool, chained: bool, placing: Placing | None = None,
) -> None:  # fmt: skip
    """Fill the room's choices for the rows of x [T, H]. router [E, H]. bias [E]: of the choice. has_lists: with each
    expert's list. is_fixed: sums do not depend on the number of rows. placing: with it, choices are slots."""
    num_rows, hidden = x.shape
    routing, is_few = layer.routing, num_rows <= FEW_MIXTURE_ROWS and not is_fixed
    experts = max(16, triton.next_power_of_2(routing.num_experts))
    tile = _tile(num_rows, experts, hidden, x.dtype, is_few=is_few, is_fixed=is_fixed)
    loads, places, real = (room.ids,) * 3 if placing is None else (placing.loads, placing.places, placing.real)
    _route_kernel[(triton.cdiv(num_rows, tile.rows), triton.cdiv(experts, tile.experts))](
        x, router, router if router_bias is None else router_bias, router if bias is None else bias,
        room.logits, room.arrived, room.ids, room.weights, room.counts, room.order,
        loads, places, real, num_rows, room.max_rows, routing.scale, x.stride(0), layer.first_expert, layer.num_own,
        len(real),
        H=hidden, E=routing.num_experts, EPAD=experts, TOP_K=routing.num_chosen,
        SIGMOID=routing.scoring == "sigmoid", RENORMALISES=routing.renormalises, GROUPS=routing.num_groups,
        TOP_GROUPS=routing.top_groups, SUMS_TWO=routing.group_score == "sum_of_two", HAS_BIAS=bias is not None,
        HAS_ROUTER_BIAS=router_bias is not None, IS_FEW=is_few, LISTS=has_lists,
        PLACES=0 if placing is None else places.shape[1], REAL_ENDS=placing is not None and placing.ends,
        BM=tile.rows, BE=tile.experts, BK=tile.depth, BC=tile.chosen_rows, CHAINED=chained, launch_pdl=chained,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "max_rows", "first_expert", "num_own", "num_real"])
def _route_kernel(
    x_ptr, router_ptr, router_bias_ptr, bias_ptr, logits_ptr, arrived_ptr, ids_ptr, weights_ptr, counts_ptr, order_ptr,
    loads_ptr, places_ptr, real_ptr, num_rows, max_rows, scale, x_stride, first_expert, num_own, num_real,
    H: tl.constexpr, E: tl.constexpr, EPAD: tl.constexpr, TOP_K: tl.constexpr, SIGMOID: tl.constexpr,
    RENORMALISES: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, SUMS_TWO: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_ROUTER_BIAS: tl.constexpr, IS_FEW: tl.constexpr, LISTS: tl.constexpr,
    PLACES: tl.constexpr, REAL_ENDS: tl.constexpr,
    BM: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    tile, e = tl.program_id(0), tl.arange(0, EPAD)
    m, own = tile * BM + tl.arange(0, BM), tl.program_id(1) * BE + tl.arange(0, BE)
    if IS_FEW:
        wait_for_previous(CHAINED)
        logits = _row_logits(x_ptr + tile.to(tl.int64) * x_stride, router_ptr, own, H, E, BE, BK)[None, :]
    else:
        if CHAINED:
            _prefetch(router_ptr, own, H, E)
        wait_for_previous(CHAINED)
        logits = _tile_logits(x_ptr, router_ptr, m, own, num_rows, x_stride, H, E, BE, BM, BK)
    tl.store(logits_ptr + m[:, None] * EPAD + own[None, :], logits, mask=(m < num_rows)[:, None])
    tl.debug_barrier()
    is_last = True
    if BE < EPAD:
        is_last = tl.atomic_add(arrived_ptr + tile, 1, sem="acq_rel") == tl.num_programs(1) - 1
    if is_last:
        if BE < EPAD:
            tl.store(arrived_ptr + tile, 0)
        for start in range(0, BM, BC):
            rows = tile * BM + start + tl.arange(0, BC)
            cell = logits_ptr + rows[:, None] * EPAD + e[None, :]
            some = tl.load(cell, mask=(rows < num_rows)[:, None] & (e < E)[None, :], other=0.0, cache_modifier=".cg")
            choose_and_list(
                some, rows, e, router_bias_ptr, bias_ptr, ids_ptr, weights_ptr, counts_ptr, order_ptr, loads_ptr,
                places_ptr, real_ptr, num_rows, max_rows, scale, first_expert, num_own, num_real, E, EPAD, TOP_K,
                SIGMOID, RENORMALISES, GROUPS, TOP_GROUPS, SUMS_TWO, HAS_BIAS, HAS_ROUTER_BIAS, LISTS, PLACES,
                REAL_ENDS,
            )  # fmt: skip


@triton.jit
def _prefetch(router_ptr, own, H: tl.constexpr, E: tl.constexpr):
    """These experts' weights, which the predecessor does not write."""
    line: tl.constexpr = 1024 // router_ptr.dtype.element_ty.primitive_bitwidth
    column = tl.arange(0, triton.next_power_of_2(triton.cdiv(H, line))) * line
    row = tl.minimum(own, E - 1)
    prefetch_to_l2(router_ptr + row[:, None] * H + tl.minimum(column, H - 1)[None, :])


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
    x_ptr, router_ptr, m, own, num_rows, x_stride, H: tl.constexpr, E: tl.constexpr, BE: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """[BM, BE]. A small tile adds up every other BK inputs apart, since each sum waits for the one before it."""
    other: tl.constexpr = 0 if BM > 16 else BK
    acc = tl.zeros([BM, BE], tl.float32)
    acc_other = tl.zeros([BM, BE], tl.float32)
    x_ptr += m.to(tl.int64)[:, None] * x_stride
    router_ptr += own[None, :] * H
    for start in range(0, H, BK + other):
        acc = _add_inputs(acc, x_ptr, router_ptr, m < num_rows, own < E, start, H, BK)
        if other > 0:
            acc_other = _add_inputs(acc_other, x_ptr, router_ptr, m < num_rows, own < E, start + other, H, BK)
    return acc + acc_other


@triton.jit
def _add_inputs(acc, x_ptr, router_ptr, is_row, is_expert, start, H: tl.constexpr, BK: tl.constexpr):
    k = start + tl.arange(0, BK)
    x = tl.load(x_ptr + k[None, :], mask=is_row[:, None] & (k < H)[None, :], other=0.0)
    w = tl.load(router_ptr + k[:, None], mask=is_expert[None, :] & (k < H)[:, None], other=0.0)
    return tl.dot(x, w, acc, input_precision="ieee")
