"""Adapters on a GPU: the ops `add_adapters` and `add_table_adapters`, two launches for all adapters of a step.

    slots of the rows     2  0  0 -1  2          lists   slot 0: rows 1 2     slot 2: rows 0 4      once a step
    shrink     h = x A^T, a program for a slot, some of its rows, some of A's rows and of the inputs
    expand     y += h B^T, a program for a slot, some of its rows and some outputs; it adds up the inputs' parts of h

Programs of a slot without rows, or whose adapter leaves the module as it is, end at once, so a launch's shape depends
on the number of rows alone, and a CUDA graph can hold it. Each adapter is read once for all its rows that a tile holds.
Grouping rows by adapter follows Punica's SGMV (Chen et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import SHRINK_SPLITS
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.linear.adapter_rows import RowLists
from octavo.kernels.triton.linear.skinny_linear import shared_memory


@dataclass(frozen=True, slots=True, eq=False)
class SlotMatrices:
    """A module's matrices in all slots. a [S, P * R, in], of a table [S, in, R]; b [S, out, R]; ranks [S] int32, 0
    where the adapter leaves the module as it is. ends: where each part's outputs end."""

    a: torch.Tensor
    b: torch.Tensor
    ranks: torch.Tensor
    ends: tuple[int, ...]

    @property
    def max_rank(self) -> int:
        return int(self.b.shape[2])


@dataclass(frozen=True, slots=True)
class Tiling:
    """rows of a tile; lanes: programs that share a slot's tiles; split: programs that share the inputs."""

    rows: int
    lanes: int
    split: int


def choose_tiling(num_rows: int, *, is_fixed: bool) -> Tiling:
    """By the number of rows of a step, all of which may have one adapter."""
    if is_fixed:
        return Tiling(16, 4, 1)
    for (most, split), tiling in zip(SHRINK_SPLITS.items(), ((16, 1), (32, 4)), strict=True):
        if num_rows <= most:
            return Tiling(*tiling, split)
    return Tiling(64, 16, 1)


def shrink(
    x: torch.Tensor, module: SlotMatrices, lists: RowLists, shrunk: torch.Tensor, tiling: Tiling, *, chained: bool
) -> None:
    """shrunk [split, rows, P * R] float32, of the rows with an adapter."""
    num_slots, width, depth = module.a.shape
    columns = min(64, max(16, triton.next_power_of_2(width)))
    turn = 64 if tiling.rows > 16 else 128
    stage = (tiling.rows + columns) * turn * x.element_size()
    grid = (num_slots, tiling.lanes * triton.cdiv(width, columns), tiling.split)
    _shrink_kernel[grid](
        x, module.a, module.ranks, lists.counts, lists.order, shrunk, len(x), lists.order.shape[1], x.stride(0),
        WIDTH=width, DEPTH=depth, BM=tiling.rows, BN=columns, BK=turn, LANES=tiling.lanes, SPLIT=tiling.split,
        CHAINED=chained, launch_pdl=chained, num_warps=4,
        num_stages=max(1, min(3, shared_memory(x.device) // stage)),
    )  # fmt: skip


def shrink_table(
    ids: torch.Tensor, module: SlotMatrices, slots: torch.Tensor, shrunk: torch.Tensor, offset: int, *, chained: bool
) -> None:
    """The same for a table: shrunk [rows, R] are numbers of A. A token that is not in the table has zeros."""
    _table_kernel[(len(ids),)](
        ids, module.a, slots, shrunk, offset, module.a.shape[1],
        RANK=module.max_rank, RPAD=triton.next_power_of_2(module.max_rank), CHAINED=chained, launch_pdl=chained,
        num_warps=1,
    )  # fmt: skip


def expand(
    shrunk: torch.Tensor, module: SlotMatrices, lists: RowLists, y: torch.Tensor, tiling: Tiling, *, chained: bool
) -> None:
    """y += h B^T, where h is the sum of the parts of `shrunk`."""
    num_slots, rank = len(module.ranks), module.max_rank
    first, second, *_ = (*module.ends, module.ends[-1], module.ends[-1])
    assert len(module.ends) <= 3, "a product has up to three parts"
    columns = 128 if rank <= 32 else 64
    starts = (0, *module.ends[:-1])
    blocks = sum(triton.cdiv(end - start, columns) for start, end in zip(starts, module.ends, strict=True))
    _expand_kernel[(num_slots, blocks * tiling.lanes)](
        shrunk, module.b, module.ranks, lists.counts, lists.order, y, len(y), lists.order.shape[1], y.stride(0),
        RANK=rank, RPAD=max(16, triton.next_power_of_2(rank)), PARTS=len(module.ends), FIRST=first, SECOND=second,
        N=module.ends[-1], BM=tiling.rows, BN=columns, LANES=tiling.lanes, SPLIT=tiling.split,
        CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "max_rows"])
def _shrink_kernel(
    x_ptr, a_ptr, ranks, counts, order, shrunk, num_rows, max_rows, x_stride,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    LANES: tl.constexpr, SPLIT: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """The kernel before writes y only, and the one before that has ended: nothing here needs to wait for it. But who
    waits for this kernel waits for both."""
    slot, split = tl.program_id(0), tl.program_id(2)
    lane, n = tl.program_id(1) % LANES, tl.program_id(1) // LANES * BN + tl.arange(0, BN)
    count = tl.load(counts + slot)
    if tl.load(ranks + slot) == 0:
        count = 0
    TURNS: tl.constexpr = (DEPTH + BK * SPLIT - 1) // (BK * SPLIT)
    begin = split * TURNS * BK
    is_row = n < WIDTH
    matrix = a_ptr + (slot.to(tl.int64) * WIDTH + n) * DEPTH
    for start in range(lane * BM, count, LANES * BM):
        place = start + tl.arange(0, BM)
        row = tl.load(order + slot.to(tl.int64) * max_rows + place, mask=place < count, other=0)
        total = tl.zeros([BM, BN], tl.float32)
        for turn in range(TURNS):
            k = begin + turn * BK + tl.arange(0, BK)
            inside = k < DEPTH
            x = tl.load(x_ptr + row.to(tl.int64)[:, None] * x_stride + k[None, :], mask=inside[None, :], other=0.0)
            a = tl.load(matrix[None, :] + k[:, None], mask=inside[:, None] & is_row[None, :], other=0.0)
            total = tl.dot(x, a, total, input_precision="ieee")
        at = shrunk + (split * num_rows + row).to(tl.int64)[:, None] * WIDTH + n[None, :]
        tl.store(at, total, mask=(place < count)[:, None] & is_row[None, :])
    wait_for_previous(CHAINED)


@triton.jit
def _table_kernel(
    ids, a_ptr, slots, shrunk, offset, num_ids, RANK: tl.constexpr, RPAD: tl.constexpr, CHAINED: tl.constexpr
):
    i = tl.program_id(0)
    wait_for_previous(CHAINED)
    slot = tl.load(slots + i)
    if slot >= 0:
        token = tl.maximum(tl.load(ids + i), 0) + offset
        r = tl.arange(0, RPAD)
        inside = (r < RANK) & (token >= 0) & (token < num_ids)
        a = tl.load(a_ptr + (slot.to(tl.int64) * num_ids + token) * RANK + r, mask=inside, other=0.0)
        tl.store(shrunk + i.to(tl.int64) * RANK + r, a.to(tl.float32), mask=r < RANK)


@triton.jit(do_not_specialize=["num_rows", "max_rows"])
def _expand_kernel(
    shrunk, b_ptr, ranks, counts, order, y_ptr, num_rows, max_rows, y_stride,
    RANK: tl.constexpr, RPAD: tl.constexpr, PARTS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, LANES: tl.constexpr, SPLIT: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    slot, lane, block = tl.program_id(0), tl.program_id(1) % LANES, tl.program_id(1) // LANES
    # the part that the block is of, and where its outputs begin and end
    IN_FIRST: tl.constexpr = (FIRST + BN - 1) // BN
    IN_SECOND: tl.constexpr = (SECOND - FIRST + BN - 1) // BN
    is_behind, is_last = block >= IN_FIRST, (block >= IN_FIRST + IN_SECOND) & (PARTS > 2)
    part = is_behind.to(tl.int32) + is_last.to(tl.int32)
    begin = tl.where(is_behind, FIRST + (block - IN_FIRST) * BN, block * BN)
    begin = tl.where(is_last, SECOND + (block - IN_FIRST - IN_SECOND) * BN, begin)
    end = tl.where(is_last, N, tl.where(is_behind, SECOND, FIRST))
    n, r = begin + tl.arange(0, BN), tl.arange(0, RPAD)
    count = tl.load(counts + slot)
    if tl.load(ranks + slot) == 0:
        count = 0
    b_at = b_ptr + (slot.to(tl.int64) * N + n)[None, :] * RANK + r[:, None]
    is_number = (r < RANK)[:, None] & (n < end)[None, :]
    b = tl.load(b_at, mask=is_number & (lane * BM < count), other=0.0)
    wait_for_previous(CHAINED)
    WIDTH: tl.constexpr = PARTS * RANK
    for start in range(lane * BM, count, LANES * BM):
        place = start + tl.arange(0, BM)
        row = tl.load(order + slot.to(tl.int64) * max_rows + place, mask=place < count, other=0).to(tl.int64)
        h = tl.zeros([BM, RPAD], tl.float32)
        own = (place < count)[:, None] & (r < RANK)[None, :]
        for split in tl.static_range(SPLIT):
            at = shrunk + (split * num_rows + row)[:, None] * WIDTH + part * RANK + r[None, :]
            h += tl.load(at, mask=own, other=0.0)
        added = tl.dot(h.to(b.dtype), b, input_precision="ieee")
        at = y_ptr + row[:, None] * y_stride + n[None, :]
        inside = (place < count)[:, None] & (n < end)[None, :]
        y = tl.load(at, mask=inside, other=0.0).to(tl.float32) + added
        tl.store(at, y.to(y_ptr.dtype.element_ty), mask=inside)
