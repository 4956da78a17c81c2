"""Adapters on a GPU: the ops `add_adapters` and `add_table_adapters`, two launches for all adapters of a step.

    y = x W^T            the product, which others compute
    shrink   h = x A^T   for each row with an adapter; it reads nothing that the product writes, and runs beside it
    expand   y += h B^T  it loads its part of B while both run, and adds up the inputs' parts of h

With few rows (`few_adapted_rows.py`) a program has one row, and some of its adapter's numbers; with more, here, a tile
of rows that have one adapter. A launch's shape depends on the number of rows alone, so a CUDA graph can hold it;
programs without work end at once. What follows a product of gates, act(gate) * up, is computed as B's part is added.
Grouping rows by adapter follows Punica's SGMV (Chen et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import SHRINK_SPLITS
from octavo.kernels.ops import Activation
from octavo.kernels.triton.chain import admit_next, wait_for_previous
from octavo.kernels.triton.elementwise.elementwise import activate
from octavo.kernels.triton.linear.adapter_rows import RowLists
from octavo.kernels.triton.linear.skinny_linear import shared_memory
from octavo.kernels.triton.linear.slot_matrices import SlotMatrices, block_of, output_blocks


@dataclass(frozen=True, slots=True)
class Tiling:
    """rows of a tile; split: programs that share the inputs."""

    rows: int
    split: int


def choose_tiling(num_rows: int, *, is_fixed: bool) -> Tiling:
    """By the number of rows of a step, all of which may have one adapter."""
    if is_fixed:
        return Tiling(16, 1)
    split = next((split for most, split in SHRINK_SPLITS.items() if num_rows <= most), 1)
    return Tiling(16 if split > 1 else 64, split)


def shrink(
    x: torch.Tensor, module: SlotMatrices, lists: RowLists, shrunk: torch.Tensor, tiling: Tiling, *, chained: bool
) -> None:
    """shrunk [split, rows, P * R] float32, of the rows with an adapter."""
    num_slots, width, depth = module.a.shape
    columns = min(64, max(16, triton.next_power_of_2(width)))
    turn = 64 if tiling.rows > 16 else 128
    stage = (tiling.rows + columns) * turn * x.element_size()
    grid = (lists.num_tiles(len(x), tiling.rows), triton.cdiv(width, columns), tiling.split)
    _shrink_kernel[grid](
        x, module.a, module.ranks, lists.counts, lists.order, lists.tiles, shrunk,
        len(x), lists.order.shape[1], lists.tiles.shape[1], num_slots, x.stride(0), module.a.stride(0),
        WIDTH=width, DEPTH=depth, BM=tiling.rows, BN=columns, BK=turn, SPLIT=tiling.split,
        CHAINED=chained, launch_pdl=chained, num_warps=4,
        num_stages=max(1, min(5, shared_memory(x.device) // stage)),
    )  # fmt: skip


def shrink_table(
    ids: torch.Tensor, module: SlotMatrices, slots: torch.Tensor, shrunk: torch.Tensor, offset: int, *, chained: bool
) -> None:
    """The same for a table: shrunk [rows, R] are numbers of A. A token that is not in the table has zeros."""
    _table_kernel[(len(ids),)](
        ids, module.a, slots, shrunk, offset, module.a.shape[1], module.a.stride(0),
        RANK=module.max_rank, RPAD=triton.next_power_of_2(module.max_rank), CHAINED=chained, launch_pdl=chained,
        num_warps=1,
    )  # fmt: skip


def expand(
    shrunk: torch.Tensor,
    module: SlotMatrices,
    lists: RowLists,
    y: torch.Tensor,
    tiling: Tiling,
    *,
    gated: tuple[Activation, torch.Tensor] | None = None,
    chained: bool,
) -> None:
    """y += h B^T, where h is the sum of the parts of `shrunk`. gated: an activation, and where act(gate) * up of the
    sums goes; y then stays as it was."""
    num_slots, rank = len(module.ranks), module.max_rank
    gate, out = gated or ("", y)
    columns = 128 if rank <= 32 and not gate else 64
    shape = output_blocks(module, columns, gate)
    _expand_kernel[(lists.num_tiles(len(y), tiling.rows), shape.pop("blocks"))](
        shrunk, module.b, module.ranks, lists.counts, lists.order, lists.tiles, y, out,
        len(y), lists.order.shape[1], lists.tiles.shape[1], num_slots,
        y.stride(0), out.stride(0), module.b.stride(0),
        RANK=rank, RPAD=max(16, triton.next_power_of_2(rank)), **shape,
        BM=tiling.rows, BN=columns, SPLIT=tiling.split, GATE=gate,
        CHAINED=chained, launch_pdl=chained, num_warps=8 if tiling.rows > 16 else 4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "max_rows", "max_tiles", "num_slots"])
def _shrink_kernel(
    x_ptr, a_ptr, ranks, counts, order, tiles, shrunk, num_rows, max_rows, max_tiles, num_slots, x_stride, a_stride,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """The kernel before writes y only, and the one before that has ended: nothing here needs to wait for it. But who
    waits for this kernel waits for both."""
    admit_next(CHAINED)
    tile, split = tl.program_id(0), tl.program_id(2)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    if tile < tl.load(counts + num_slots + 1):
        slot, start = tl.load(tiles + tile), tl.load(tiles + max_tiles + tile)
        count = tl.load(counts + slot)
        if tl.load(ranks + slot, mask=slot < num_slots, other=0) > 0:
            place = start + tl.arange(0, BM)
            row = tl.load(order + slot.to(tl.int64) * max_rows + place, mask=place < count, other=0)
            is_row = n < WIDTH
            matrix = a_ptr + slot.to(tl.int64) * a_stride + n * DEPTH
            rows = x_ptr + row.to(tl.int64) * x_stride
            TURNS: tl.constexpr = (DEPTH + BK * SPLIT - 1) // (BK * SPLIT)
            total = tl.zeros([BM, BN], tl.float32)
            for turn in range(TURNS):
                k = (split * TURNS + turn) * BK + tl.arange(0, BK)
                inside = k < DEPTH
                x = tl.load(rows[:, None] + k[None, :], mask=inside[None, :], other=0.0)
                a = tl.load(matrix[None, :] + k[:, None], mask=inside[:, None] & is_row[None, :], other=0.0)
                total = tl.dot(x, a, total, input_precision="ieee")
            at = shrunk + (split * num_rows + row).to(tl.int64)[:, None] * WIDTH + n[None, :]
            tl.store(at, total, mask=(place < count)[:, None] & is_row[None, :])
    wait_for_previous(CHAINED)


@triton.jit
def _table_kernel(
    ids, a_ptr, slots, shrunk, offset, num_ids, a_stride, RANK: tl.constexpr, RPAD: tl.constexpr, CHAINED: tl.constexpr
):
    i = tl.program_id(0)
    wait_for_previous(CHAINED)
    slot = tl.load(slots + i)
    if slot >= 0:
        token = tl.maximum(tl.load(ids + i), 0) + offset
        r = tl.arange(0, RPAD)
        inside = (r < RANK) & (token >= 0) & (token < num_ids)
        a = tl.load(a_ptr + slot.to(tl.int64) * a_stride + token.to(tl.int64) * RANK + r, mask=inside, other=0.0)
        tl.store(shrunk + i.to(tl.int64) * RANK + r, a.to(tl.float32), mask=r < RANK)


@triton.jit(do_not_specialize=["num_rows", "max_rows", "max_tiles", "num_slots"])
def _expand_kernel(
    shrunk, b_ptr, ranks, counts, order, tiles, y_ptr, out_ptr,
    num_rows, max_rows, max_tiles, num_slots, y_stride, out_stride, b_stride,
    RANK: tl.constexpr, RPAD: tl.constexpr, PARTS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, SPLIT: tl.constexpr, GATE: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    part, begin, end = block_of(tl.program_id(1), PARTS, FIRST, SECOND, N, BN, GATE)
    n, r = begin + tl.arange(0, BN), tl.arange(0, RPAD)
    is_tile = tile < tl.load(counts + num_slots + 1)
    slot = tl.load(tiles + tile, mask=is_tile, other=0)
    start = tl.load(tiles + max_tiles + tile, mask=is_tile, other=0)
    count = tl.load(counts + slot)
    is_used = is_tile & (slot < num_slots)
    is_used = is_used & (tl.load(ranks + slot, mask=is_used, other=0) > 0)
    is_number = (r < RANK)[:, None] & (n < end)[None, :] & is_used
    b_at = b_ptr + slot.to(tl.int64) * b_stride + n[None, :] * RANK + r[:, None]
    b = tl.load(b_at, mask=is_number, other=0.0)
    if GATE != "":
        b_up = tl.load(b_at + (N // 2) * RANK, mask=is_number, other=0.0)
    wait_for_previous(CHAINED)
    if is_used | (is_tile & (GATE != "")):
        place = start + tl.arange(0, BM)
        is_row = place < count
        row = tl.load(order + slot.to(tl.int64) * max_rows + place, mask=is_row, other=0).to(tl.int64)
        inside = is_row[:, None] & (n < end)[None, :]
        own = is_row[:, None] & (r < RANK)[None, :] & is_used
        at = y_ptr + row[:, None] * y_stride + n[None, :]
        h = _sum(shrunk + row[:, None] * (PARTS * RANK) + part * RANK + r[None, :], own, num_rows, PARTS * RANK, SPLIT)
        y = tl.dot(h.to(b.dtype), b, input_precision="ieee") + tl.load(at, mask=inside, other=0.0).to(tl.float32)
        if GATE != "":
            if PARTS > 1:
                h = _sum(shrunk + row[:, None] * (PARTS * RANK) + RANK + r[None, :], own, num_rows, PARTS * RANK, SPLIT)
            up = tl.dot(h.to(b.dtype), b_up, input_precision="ieee")
            y = activate(y, GATE) * (up + tl.load(at + N // 2, mask=inside, other=0.0).to(tl.float32))
        to = out_ptr + row[:, None] * out_stride + n[None, :]
        tl.store(to, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _sum(at, mask, num_rows, WIDTH: tl.constexpr, SPLIT: tl.constexpr):
    """Of the inputs' parts of h."""
    h = tl.load(at, mask=mask, other=0.0)
    for split in tl.static_range(1, SPLIT):
        h += tl.load(at + split * num_rows.to(tl.int64) * WIDTH, mask=mask, other=0.0)
    return h
