"""Many long rows between a gated product, whose scales they lack, and the next: activated, and made fp8.

A row is one program's, in four parts, which wait as 16-bit numbers for the scale of the whole. That takes so few
registers that two programs share a multiprocessor, so that up to 264 rows need no second turn on a Hopper.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.ops import Activation
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.elementwise.elementwise import activate
from octavo.kernels.triton.linear.fp8_codes import codes_of, scale_of

LONG_ROWS = range(4097, 16385)  # widths
LEAST_LONG_ROWS = 97  # fewer rows are as fast whole


def gate_long_rows(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, activation: Activation, column_scales: torch.Tensor, *,
    chained: bool,
) -> None:  # fmt: skip
    """As `quantise_rows` with an activation and scales of columns, for widths in LONG_ROWS."""
    block = triton.next_power_of_2(codes.shape[1])
    _kernel[(len(x),)](
        x, column_scales, codes, scales, codes.shape[1], x.stride(0), codes.stride(0),
        PART=block // 4, ACTIVATION=activation, CHAINED=chained, launch_pdl=chained, num_warps=block // 1024,
        maxnreg=64,
    )  # fmt: skip


@triton.jit
def _kernel(
    x_ptr, columns_ptr, codes_ptr, scales_ptr, width, x_stride, codes_stride,
    PART: tl.constexpr, ACTIVATION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    wait_for_previous(CHAINED)
    x_ptr += row * x_stride
    codes_ptr += row * codes_stride
    row_scale = tl.load(scales_ptr + row)
    first = _gated_part(x_ptr, columns_ptr, row_scale, width, 0, PART, ACTIVATION)
    second = _gated_part(x_ptr, columns_ptr, row_scale, width, PART, PART, ACTIVATION)
    third = _gated_part(x_ptr, columns_ptr, row_scale, width, 2 * PART, PART, ACTIVATION)
    fourth = _gated_part(x_ptr, columns_ptr, row_scale, width, 3 * PART, PART, ACTIVATION)
    largest = tl.maximum(tl.maximum(tl.abs(first), tl.abs(second)), tl.maximum(tl.abs(third), tl.abs(fourth)))
    scale = scale_of(tl.max(largest.to(tl.float32), 0))
    _store_part(first, scale, codes_ptr, width, 0, PART)
    _store_part(second, scale, codes_ptr, width, PART, PART)
    _store_part(third, scale, codes_ptr, width, 2 * PART, PART)
    _store_part(fourth, scale, codes_ptr, width, 3 * PART, PART)
    tl.store(scales_ptr + row, scale)


@triton.jit
def _gated_part(x_ptr, columns_ptr, row_scale, width, start, PART: tl.constexpr, ACTIVATION: tl.constexpr):
    k = start + tl.arange(0, PART)
    inside = k < width
    x = tl.load(x_ptr + k, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + width + k, mask=inside, other=0.0).to(tl.float32)
    x *= tl.load(columns_ptr + k, mask=inside, other=0.0) * row_scale
    up *= tl.load(columns_ptr + width + k, mask=inside, other=0.0) * row_scale
    return (activate(x, ACTIVATION) * up).to(x_ptr.dtype.element_ty)


@triton.jit
def _store_part(y, scale, codes_ptr, width, start, PART: tl.constexpr):
    k = start + tl.arange(0, PART)
    codes = codes_of(y.to(tl.float32), scale)
    tl.store(codes_ptr + k, codes.to(codes_ptr.dtype.element_ty), mask=k < width)
