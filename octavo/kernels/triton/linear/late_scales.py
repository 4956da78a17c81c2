"""The scales, and the bias, of a product that a library computed without them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.chain import wait_for_previous

_MOST_ROWS, _MOST_COLUMNS = 256, 8192  # with more, a library is as fast with scales
_TILE = 1024


def come_late(out: torch.Tensor) -> bool:
    """Whether that is faster for such a result."""
    return len(out) <= _MOST_ROWS and out.shape[1] <= _MOST_COLUMNS


def put_scales(
    out: torch.Tensor, row_scales: torch.Tensor, column_scales: torch.Tensor, bias: torch.Tensor | None, *,
    chained: bool,
) -> None:  # fmt: skip
    """out [T, width] = out * row_scales [T] * column_scales [width] + bias."""
    width = out.shape[1]
    _kernel[(len(out), triton.cdiv(width, _TILE))](
        out, row_scales, column_scales, column_scales if bias is None else bias, width, out.stride(0),
        TILE=_TILE, HAS_BIAS=bias is not None, CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


@triton.jit
def _kernel(
    out_ptr, row_scales_ptr, column_scales_ptr, bias_ptr, width, stride,
    TILE: tl.constexpr, HAS_BIAS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = k < width
    columns = tl.load(column_scales_ptr + k, mask=inside, other=0.0)
    wait_for_previous(CHAINED)
    at = out_ptr + row * stride + k
    y = tl.load(at, mask=inside, other=0.0).to(tl.float32) * (columns * tl.load(row_scales_ptr + row))
    if HAS_BIAS:
        y += tl.load(bias_ptr + k, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, y.to(out_ptr.dtype.element_ty), mask=inside)
