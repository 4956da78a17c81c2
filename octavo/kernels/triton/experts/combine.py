"""The end of a mixture of many rows: the weighted sum of each row's pairs, and the counts set back to zero.

What follows it in most models, the sum with the residual and the next norm, can be in the same launch, which then has
whole rows: they are read and written once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.elementwise.norm import num_warps
from octavo.kernels.triton.experts.room import Room

_TILE = 1024


class NextNorm(NamedTuple):
    """out [T, H] = rms_norm(the sum, as it is stored). weight [H] in float32. out may be what the mixture reads."""

    weight: torch.Tensor
    eps: float
    out: torch.Tensor


def combine(
    residual: torch.Tensor | None, out: torch.Tensor, room: Room, *, num_chosen: int, first_expert: int, num_own: int,
    chained: bool, norm: NextNorm | None = None,
) -> None:  # fmt: skip
    """out [T, H] = the weighted sum of room.results (+ residual, which may be out), and its norm."""
    num_rows, width = out.shape
    tile = _TILE if norm is None else triton.next_power_of_2(width)
    weight, eps, normed = norm or NextNorm(out, 0.0, out)
    _combine_kernel[(num_rows, triton.cdiv(width, tile))](
        room.results, room.ids, room.weights, room.counts,
        out if residual is None else residual, out, weight, normed, eps,
        out.stride(0) if residual is None else residual.stride(0), out.stride(0), normed.stride(0),
        first_expert, num_own,
        COUNTS=triton.next_power_of_2(len(room.counts)), NUM_COUNTS=len(room.counts), TOP_K=num_chosen, WIDTH=width,
        TILE=tile, HAS_RESIDUAL=residual is not None, HAS_NORM=norm is not None, CHAINED=chained, launch_pdl=chained,
        num_warps=4 if norm is None else num_warps(tile),
    )  # fmt: skip


@triton.jit(do_not_specialize=["first_expert", "num_own"])
def _combine_kernel(
    results_ptr, ids_ptr, weights_ptr, counts_ptr, residual_ptr, out_ptr, norm_ptr, normed_ptr, eps,
    residual_stride, out_stride, normed_stride, first_expert, num_own,
    COUNTS: tl.constexpr, NUM_COUNTS: tl.constexpr, TOP_K: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = col < WIDTH
    if HAS_NORM:
        norm = tl.load(norm_ptr + col, mask=mask, other=0.0).to(tl.float32)
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
    stored = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * out_stride + col, stored, mask=mask)
    if HAS_NORM:
        x = stored.to(tl.float32)
        rstd = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
        tl.store(normed_ptr + row * normed_stride + col, (x * rstd * norm).to(normed_ptr.dtype.element_ty), mask=mask)
