"""Adapters of a few rows, as in most steps of decodes: a program has one row, and some of its adapter's numbers.

    shrink   program (row, part of A's rows, part of the inputs): all that it reads is on its way at once
    expand   program (row, some outputs)

Reading A and B is the cost, and waiting for it: both load before the product has ended. Rows that share an adapter read
it from the L2 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import shrink_depth, shrink_parts
from octavo.kernels.ops import Activation
from octavo.kernels.triton.chain import admit_next, wait_for_previous
from octavo.kernels.triton.elementwise.elementwise import activate
from octavo.kernels.triton.linear.slot_matrices import SlotMatrices, block_of, output_blocks


def shrink_rows(
    x: torch.Tensor, module: SlotMatrices, slots: torch.Tensor, shrunk: torch.Tensor, *, chained: bool
) -> None:
    """shrunk [parts, rows, P * R] float32, of the rows with an adapter."""
    _, width, depth = module.a.shape
    rows, num_parts = 16, shrink_parts(len(x), depth)
    _shrink_kernel[(len(x), triton.cdiv(width, rows), num_parts)](
        x, module.a, module.ranks, slots, shrunk, len(x), x.stride(0), module.a.stride(0),
        WIDTH=width, DEPTH=depth, BN=rows, BK=shrink_depth(len(x)), CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


def expand_rows(
    shrunk: torch.Tensor,
    parts: int,
    module: SlotMatrices,
    slots: torch.Tensor,
    y: torch.Tensor,
    *,
    gated: tuple[Activation, torch.Tensor] | None = None,
    chained: bool,
) -> None:
    """As `expand` of `adapters.py`. parts: of the inputs."""
    rank = module.max_rank
    gate, out = gated or ("", y)
    columns = expand_columns(len(y), rank, gate)
    shape = output_blocks(module, columns, gate)
    _expand_kernel[(len(y), shape.pop("blocks"))](
        shrunk, module.b, module.ranks, slots, y, out, len(y), y.stride(0), out.stride(0), module.b.stride(0),
        RANK=rank, RPAD=triton.next_power_of_2(rank), **shape, BN=columns, SPLIT=parts,
        SPAD=triton.next_power_of_2(parts), GATE=gate, CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


def expand_columns(num_rows: int, rank: int, gate: str) -> int:
    """Outputs that a program has: few if there are few programs, and as many as registers hold."""
    return min(256 if num_rows <= 8 or gate else 512, max(16, 8192 // triton.next_power_of_2(rank)))


@triton.jit(do_not_specialize=["num_rows"])
def _shrink_kernel(
    x_ptr, a_ptr, ranks, slots, shrunk, num_rows, x_stride, a_stride,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """What it reads was there before the kernel before began, as in `adapters.py`."""
    admit_next(CHAINED)
    row, part = tl.program_id(0), tl.program_id(2)
    n, k = tl.program_id(1) * BN + tl.arange(0, BN), part * BK + tl.arange(0, BK)
    slot = tl.load(slots + row)
    rank = tl.load(ranks + slot, mask=slot >= 0, other=0)
    if rank > 0:
        a_at = a_ptr + slot.to(tl.int64) * a_stride + n[:, None] * DEPTH + k[None, :]
        a = tl.load(a_at, mask=(n < WIDTH)[:, None] & (k < DEPTH)[None, :], other=0.0)
        x = tl.load(x_ptr + row.to(tl.int64) * x_stride + k, mask=k < DEPTH, other=0.0)
        h = tl.sum(a.to(tl.float32) * x.to(tl.float32)[None, :], 1)
        tl.store(shrunk + (part * num_rows + row) * WIDTH + n, h, mask=n < WIDTH)
    wait_for_previous(CHAINED)


@triton.jit(do_not_specialize=["num_rows"])
def _expand_kernel(
    shrunk, b_ptr, ranks, slots, y_ptr, out_ptr, num_rows, y_stride, out_stride, b_stride,
    RANK: tl.constexpr, RPAD: tl.constexpr, PARTS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    N: tl.constexpr, BN: tl.constexpr, SPLIT: tl.constexpr, SPAD: tl.constexpr, GATE: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    part, begin, end = block_of(tl.program_id(1), PARTS, FIRST, SECOND, N, BN, GATE)
    n, r, split = begin + tl.arange(0, BN), tl.arange(0, RPAD), tl.arange(0, SPAD)
    slot = tl.load(slots + row)
    is_used = tl.load(ranks + slot, mask=slot >= 0, other=0) > 0
    is_number = (n < end)[:, None] & (r < RANK)[None, :] & is_used
    b_at = b_ptr + tl.maximum(slot, 0).to(tl.int64) * b_stride + n[:, None] * RANK + r[None, :]
    b = tl.load(b_at, mask=is_number, other=0.0)
    if GATE != "":
        b_up = tl.load(b_at + (N // 2) * RANK, mask=is_number, other=0.0)
    wait_for_previous(CHAINED, EARLY=True)
    if is_used | (GATE != ""):
        h_at = shrunk + (split * num_rows + row)[:, None] * (PARTS * RANK) + part * RANK + r[None, :]
        is_own = (split < SPLIT)[:, None] & (r < RANK)[None, :] & is_used
        h = tl.sum(tl.load(h_at, mask=is_own, other=0.0), 0)
        at = y_ptr + row.to(tl.int64) * y_stride + n
        y = tl.load(at, mask=n < end, other=0.0).to(tl.float32) + tl.sum(b.to(tl.float32) * h[None, :], 1)
        if GATE != "":
            if PARTS > 1:
                h = tl.sum(tl.load(h_at + RANK, mask=is_own, other=0.0), 0)
            up = tl.load(at + N // 2, mask=n < end, other=0.0).to(tl.float32)
            y = activate(y, GATE) * (up + tl.sum(b_up.to(tl.float32) * h[None, :], 1))
        tl.store(out_ptr + row.to(tl.int64) * out_stride + n, y.to(out_ptr.dtype.element_ty), mask=n < end)
