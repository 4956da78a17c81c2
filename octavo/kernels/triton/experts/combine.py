"""The end of a mixture of many rows: the weighted sum of each row's pairs, and the counts set back to zero."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.experts.room import Room

_TILE = 1024


def combine(
    residual: torch.Tensor | None, out: torch.Tensor, room: Room, *, num_chosen: int, first_expert: int, num_own: int,
    chained: bool,
) -> None:  # fmt: skip
    """out [T, H] = the weighted sum of room.results (+ residual, which may be out)."""
    num_rows, width = out.shape
    _combine_kernel[(num_rows, triton.cdiv(width, _TILE))](
        room.results, room.ids, room.weights, room.counts, out if residual is None else residual, out,
        out.stride(0) if residual is None else residual.stride(0), out.stride(0), first_expert, num_own,
        COUNTS=triton.next_power_of_2(len(room.counts)), NUM_COUNTS=len(room.counts), TOP_K=num_chosen, WIDTH=width,
        TILE=_TILE, HAS_RESIDUAL=residual is not None, CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first_expert", "num_own"])
def _combine_kernel(
    results_ptr, ids_ptr, weights_ptr, counts_ptr, residual_ptr, out_ptr, residual_stride, out_stride,
    first_expert, num_own, COUNTS: tl.constexpr, NUM_COUNTS: tl.constexpr, TOP_K: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, HAS_RESIDUAL: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = col < WIDTH
    wait_for_previous(CHAINED)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        count = tl.arange(0, COUNTS)
        tl.store(counts_ptr + count, tl.zeros([COUNTS], tl.int32), mask=count < NUM_COUNTS)
    total = tl.zeros([TILE], tl.float32)
    for place in tl.static_range(TOP_K):
        pair = row * TOP_K + place
        expert = tl.load(ids_ptr + pair) - first_expert
        is_here = (expert >= 0) & (expert < num_own)
        y = tl.load(results_ptr + pair * WIDTH + col, mask=mask & is_here, other=0.0).to(tl.float32)
        total += tl.where(is_here, tl.load(weights_ptr + pair), 0.0) * y
    if HAS_RESIDUAL:
        total += tl.load(residual_ptr + row * residual_stride + col, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * out_stride + col, total.to(out_ptr.dtype.element_ty), mask=mask)
