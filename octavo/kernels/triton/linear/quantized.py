"""What products need around them: rows made fp8, or their inputs dealt or gathered."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import ROWS_AT_ONCE
from octavo.kernels.ops import Activation
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.elementwise.elementwise import activate
from octavo.kernels.triton.linear.fp8_codes import codes_of, scale_of
from octavo.kernels.triton.linear.long_rows import LEAST_LONG_ROWS, LONG_ROWS, gate_long_rows

_ROWS, _COLUMNS = 16, 128
_PAIRS = 512  # of inputs, that a program deals
_MOST_SPREAD_ROWS = 256  # up to which a normed row is faster with more warps, as fewer programs run at once


def deal_inputs(x: torch.Tensor, out: torch.Tensor, *, chained: bool = False) -> None:
    """x [T, in] -> out, of 16 bits: of 32 inputs 8 t + 2 c + b, t and c below 4, comes to place 8 c + 2 t + b."""
    width = x.shape[1] // 2
    _deal_kernel[(len(x), triton.cdiv(width, _PAIRS))](
        x.view(torch.int32), out.view(torch.int32), width, x.stride(0) // 2, BLOCK=_PAIRS, CHAINED=chained,
        launch_pdl=chained, num_warps=4,
    )  # fmt: skip


def gather_inputs(x: torch.Tensor, order: torch.Tensor, out: torch.Tensor, *, chained: bool = False) -> None:
    """x [T, in] -> out [T, in], contiguous, of 16 bits: place i has input order[i]."""
    width = x.shape[1]
    _gather_kernel[(len(x), triton.cdiv(width, 2 * _PAIRS))](
        x.view(torch.int16), order, out.view(torch.int16), width, x.stride(0), BLOCK=2 * _PAIRS, CHAINED=chained,
        launch_pdl=chained, num_warps=4,
    )  # fmt: skip


def deal_spans(x: torch.Tensor, out: torch.Tensor, *, chained: bool = False) -> None:
    """x [T, in] -> out [T, at least in], of 16 bits: of 128 inputs 32 q + 4 s + 2 b + e comes to
    place 16 s + 8 e + 2 q + b, q below 4, s 8; then zeros."""
    padded = out.shape[1]
    _deal_spans_kernel[(len(x), triton.cdiv(padded, 2 * _PAIRS))](
        x.view(torch.int16), out.view(torch.int16), x.shape[1], padded, x.stride(0), BLOCK=2 * _PAIRS,
        CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


def quantise_rows(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, *, norm_weight: torch.Tensor | None = None,
    eps: float = 1e-6, total: torch.Tensor | None = None, activation: Activation | None = None,
    column_scales: torch.Tensor | None = None, chained: bool = False,
) -> None:  # fmt: skip
    """x [T, in] -> codes [T, in] of fp8 and scales [T, 1] float32: the largest magnitude of a row becomes 448.

    norm_weight: x is RMSNormed first; total: x is added to it, and it is normed. activation: x is [T, 2 in], and its
    first half, activated, multiplies the second. column_scales: of x, which also lacks the scales of its rows: those in
    `scales`, from when its own product's rows became fp8."""
    width = codes.shape[1]
    assert total is None or norm_weight is not None, "a sum is normed"
    assert x.shape[1] == width * (1 if activation is None else 2), f"{x.shape[1]} columns become {width} codes"
    block = triton.next_power_of_2(width)
    is_long = width in LONG_ROWS and len(x) >= LEAST_LONG_ROWS
    if is_long and activation is not None and column_scales is not None and norm_weight is None:
        gate_long_rows(x, codes, scales, activation, column_scales, chained=chained)
        return
    is_wide = block >= 8192 or (block == 4096 and norm_weight is not None and len(x) <= _MOST_SPREAD_ROWS)
    _quantise_rows_kernel[(len(x),)](
        x, x if total is None else total, scales if norm_weight is None else norm_weight,
        scales if column_scales is None else column_scales, codes, scales,
        width, eps, x.stride(0), 0 if total is None else total.stride(0), codes.stride(0),
        BLOCK=block, HAS_NORM=norm_weight is not None, HAS_TOTAL=total is not None, ACTIVATION=activation or "",
        IS_UNSCALED=column_scales is not None, CHAINED=chained, launch_pdl=chained, num_warps=16 if is_wide else 8,
    )  # fmt: skip


def fp8_product(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor,
    codes: torch.Tensor, row_scales: torch.Tensor, *, chained: bool, one: torch.Tensor | None = None, **before: Any,
) -> None:  # fmt: skip
    """out = x W^T + bias by a library, for a weight [out, in] of fp8 with scales [out]. codes, row_scales: flat, room
    for the rows in fp8. before: see `quantise_rows`. one: is 1, and out lacks the scales of its rows and columns, and
    the bias; with up to 256 rows a library is faster without them.

    Sums are fast ones, with fewer bits than float32: of 4,096 inputs they are off by 1.3e-3, of 14,336 by 2.9e-3,
    about a tenth of what rounding rows to fp8 costs."""
    num_rows, depth = len(x), weight.shape[1]
    codes = codes[: num_rows * depth].view(torch.float8_e4m3fn).view(num_rows, depth)
    row_scales = row_scales[:num_rows].view(num_rows, 1)
    quantise_rows(x, codes, row_scales, chained=chained, **before)
    by = (row_scales, scales.view(1, -1)) if one is None else (one, one)
    torch._scaled_mm(
        codes, weight.t(), scale_a=by[0], scale_b=by[1], out_dtype=out.dtype, use_fast_accum=True, out=out
    )  # fmt: skip
    if bias is not None and one is None:
        out.add_(bias)


def fp8_block_product(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor,
    codes: torch.Tensor, row_scales: torch.Tensor, *, chained: bool,
) -> None:  # fmt: skip
    """The same with scales [out / 128, in / 128], and one for each 128 inputs of a row. The library takes rows by four:
    the last four are multiplied once more where others are left, and fewer with zeros below them."""
    num_rows, by_four = len(x), len(x) // ROWS_AT_ONCE * ROWS_AT_ONCE
    given = weight, scales, codes, row_scales, chained
    if by_four:
        _multiply_blocks(x[:by_four], out[:by_four], *given)
        if by_four < num_rows:
            _multiply_blocks(x[-ROWS_AT_ONCE:], out[-ROWS_AT_ONCE:], *given)
    else:
        padded = torch.nn.functional.pad(x, (0, 0, 0, ROWS_AT_ONCE - num_rows))
        sums = out.new_empty(ROWS_AT_ONCE, out.shape[1])
        _multiply_blocks(padded, sums, *given)
        out.copy_(sums[:num_rows])
    if bias is not None:
        out.add_(bias)


def _multiply_blocks(
    x: torch.Tensor, out: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, codes: torch.Tensor,
    row_scales: torch.Tensor, chained: bool,
) -> None:  # fmt: skip
    num_rows, depth = x.shape
    groups = depth // _COLUMNS
    codes = codes[: num_rows * depth].view(torch.float8_e4m3fn).view(num_rows, depth)
    row_scales = row_scales[: groups * num_rows].view(groups, num_rows)
    quantise_row_blocks(x, codes, row_scales, chained=chained)
    torch._scaled_mm(
        codes, weight.t(), scale_a=row_scales.t(), scale_b=scales.t(), out_dtype=out.dtype, out=out
    )  # fmt: skip


def quantise_row_blocks(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, *, chained: bool = False) -> None:
    """x [T, in] -> codes [T, in] of fp8 and scales [in / 128, T] float32, as `quantise_rows` for each 128 inputs."""
    _quantise_row_blocks_kernel[(len(x), triton.cdiv(len(scales), _ROWS))](
        x, codes, scales, len(scales), x.stride(0), scales.stride(0),
        BLOCKS=_ROWS, COLUMNS=_COLUMNS, CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


@triton.jit
def _quantise_row_blocks_kernel(
    x_ptr, codes_ptr, scales_ptr, num_blocks, x_stride, scales_stride,
    BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    k = block[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (block < num_blocks)[:, None]
    wait_for_previous(CHAINED)
    x = tl.load(x_ptr + row * x_stride + k, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(x), 1)
    scale = scale_of(largest)
    codes = codes_of(x, scale[:, None])
    tl.store(codes_ptr + row * num_blocks * COLUMNS + k, codes.to(codes_ptr.dtype.element_ty), mask=inside)
    tl.store(scales_ptr + block * scales_stride + row, scale, mask=block < num_blocks)


@triton.jit
def _deal_kernel(x_ptr, out_ptr, width, x_stride, BLOCK: tl.constexpr, CHAINED: tl.constexpr):
    row, pair = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = pair // 16 * 16 + pair % 4 * 4 + pair // 4 % 4
    wait_for_previous(CHAINED, EARLY=True)
    x = tl.load(x_ptr + row * x_stride + source, mask=pair < width)
    tl.store(out_ptr + row * width + pair, x, mask=pair < width)


@triton.jit
def _gather_kernel(x_ptr, order_ptr, out_ptr, width, x_stride, BLOCK: tl.constexpr, CHAINED: tl.constexpr):
    row, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < width
    source = tl.load(order_ptr + place, mask=inside, other=0)
    wait_for_previous(CHAINED, EARLY=True)
    x = tl.load(x_ptr + row * x_stride + source, mask=inside)
    tl.store(out_ptr + row * width + place, x, mask=inside)


@triton.jit
def _deal_spans_kernel(x_ptr, out_ptr, width, padded, x_stride, BLOCK: tl.constexpr, CHAINED: tl.constexpr):
    row, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = place % 8 // 2 * 32 + place // 16 % 8 * 4 + place % 2 * 2 + place // 8 % 2
    source = place // 128 * 128 + within
    wait_for_previous(CHAINED, EARLY=True)
    x = tl.load(x_ptr + row * x_stride + source, mask=source < width, other=0)
    tl.store(out_ptr + row * padded + place, x, mask=place < padded)


@triton.jit
def _quantise_rows_kernel(
    x_ptr, total_ptr, norm_ptr, columns_ptr, codes_ptr, scales_ptr, width, eps, x_stride, total_stride, codes_stride,
    BLOCK: tl.constexpr, HAS_NORM: tl.constexpr, HAS_TOTAL: tl.constexpr, ACTIVATION: tl.constexpr,
    IS_UNSCALED: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    row, k = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = k < width
    if HAS_NORM:
        norm = tl.load(norm_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if IS_UNSCALED:
        columns = tl.load(columns_ptr + k, mask=inside, other=0.0)
        if ACTIVATION != "":
            up_columns = tl.load(columns_ptr + width + k, mask=inside, other=0.0)
    wait_for_previous(CHAINED)
    x = tl.load(x_ptr + row * x_stride + k, mask=inside, other=0.0).to(tl.float32)
    if IS_UNSCALED:
        row_scale = tl.load(scales_ptr + row)
        x *= columns * row_scale
    if ACTIVATION != "":
        up = tl.load(x_ptr + row * x_stride + width + k, mask=inside, other=0.0).to(tl.float32)
        if IS_UNSCALED:
            up *= up_columns * row_scale
        x = activate(x, ACTIVATION) * up
    if HAS_TOTAL:
        at = total_ptr + row * total_stride + k
        total = (x + tl.load(at, mask=inside, other=0.0).to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(at, total, mask=inside)
        x = total.to(tl.float32)
    if HAS_NORM:
        x = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps) * norm
    scale = scale_of(tl.max(tl.abs(x), 0))
    codes = codes_of(x, scale)
    tl.store(codes_ptr + row * codes_stride + k, codes.to(codes_ptr.dtype.element_ty), mask=inside)
    tl.store(scales_ptr + row, scale)
