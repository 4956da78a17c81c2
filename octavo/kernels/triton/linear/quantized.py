"""What products of many rows need around a library: weights made dense, and rows made fp8."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import ROWS_AT_ONCE
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight
from octavo.kernels.triton.chain import wait_for_previous

_ROWS, _COLUMNS = 16, 128


def dequantise(weight: QuantizedWeight, out: torch.Tensor, *, chained: bool = False) -> None:
    """The numbers of a weight: out [out, in], contiguous."""
    zeros = weight.scales if weight.zeros is None else weight.zeros
    data = weight.data.view(torch.uint8) if weight.layout == "int4" else weight.data
    _dequantise_kernel[(weight.columns // _ROWS, weight.depth // _COLUMNS)](
        data, weight.scales, zeros, out, weight.depth, max(weight.group, 1), weight.scales.shape[-1],
        LAYOUT=weight.layout, KIND=weight.kind, HAS_ZEROS=weight.zeros is not None,
        ROWS=_ROWS, COLUMNS=_COLUMNS, CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


def quantise_rows(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, *, chained: bool = False) -> None:
    """x [T, in] -> codes [T, in] of fp8 and scales [T, 1] float32: the largest magnitude of a row becomes 448."""
    _quantise_rows_kernel[(len(x),)](
        x, codes, scales, x.shape[1], x.stride(0), codes.stride(0),
        BLOCK=triton.next_power_of_2(x.shape[1]), CHAINED=chained, launch_pdl=chained, num_warps=8,
    )  # fmt: skip


def fp8_product(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor,
    codes: torch.Tensor, row_scales: torch.Tensor, *, chained: bool,
) -> None:  # fmt: skip
    """out = x W^T + bias by a library, for a weight [out, in] of fp8 with scales [out]. codes, row_scales: flat, room
    for the rows in fp8."""
    num_rows, depth = x.shape
    codes = codes[: num_rows * depth].view(torch.float8_e4m3fn).view(num_rows, depth)
    row_scales = row_scales[:num_rows].view(num_rows, 1)
    quantise_rows(x, codes, row_scales, chained=chained)
    torch._scaled_mm(codes, weight.t(), scale_a=row_scales, scale_b=scales.view(1, -1), out_dtype=out.dtype, out=out)
    if bias is not None:
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
def _scale_of(largest):
    """Never 0 or subnormal: these a division may flush, and what is so small is nothing beside 2^-126."""
    return tl.where(largest > 0, tl.maximum(largest / 448.0, 1.1754943508222875e-38), 1.0)


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
    scale = _scale_of(largest)
    codes = tl.clamp(x / scale[:, None], -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(codes_ptr + row * num_blocks * COLUMNS + k, codes.to(codes_ptr.dtype.element_ty), mask=inside)
    tl.store(scales_ptr + block * scales_stride + row, scale, mask=block < num_blocks)


@triton.jit
def _dequantise_kernel(
    data_ptr, scales_ptr, zeros_ptr, out_ptr, depth, group, scale_columns,
    LAYOUT: tl.constexpr, KIND: tl.constexpr, HAS_ZEROS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    tile, n = tl.program_id(0).to(tl.int64), tl.arange(0, ROWS)[:, None]
    k = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    at = (tile * ROWS + n) * depth + k
    if LAYOUT == "int4":
        inside = k % 64
        lane, number = n % 8 * 4 + inside % 32 // 8, inside % 8
        nibble = number // 2 + number % 2 * 4
        word = inside // 32 * 2 + n // 8
        chunk = (tile * (depth // 64) + k // 64) * 32 + lane
        byte = tl.load(data_ptr + chunk * 16 + word * 4 + nibble // 2)
        y = ((byte >> (nibble % 2 * 4).to(tl.uint8)) & 15).to(tl.float32)
    else:
        y = tl.load(data_ptr + at).to(tl.float32)
    if KIND == "groups":
        place = ((tile * (depth // group) + k // group) * 8 + n % 8) * 2 + n // 8
    elif KIND == "blocks":
        place = tile * ROWS // 128 * scale_columns + k // 128 + n * 0
    else:
        place = tile * ROWS + n + k * 0
    if LAYOUT == "int8":
        y -= 128
    if LAYOUT == "int4":
        if HAS_ZEROS:
            y -= tl.load(zeros_ptr + place).to(tl.float32)
        else:
            y -= 8
    wait_for_previous(CHAINED)
    tl.store(out_ptr + at, (y * tl.load(scales_ptr + place)).to(out_ptr.dtype.element_ty))


@triton.jit
def _quantise_rows_kernel(
    x_ptr, codes_ptr, scales_ptr, width, x_stride, codes_stride, BLOCK: tl.constexpr, CHAINED: tl.constexpr
):
    row, k = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    wait_for_previous(CHAINED)
    x = tl.load(x_ptr + row * x_stride + k, mask=k < width, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(x), 0)
    scale = _scale_of(largest)
    codes = tl.clamp(x / scale, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(codes_ptr + row * codes_stride + k, codes.to(codes_ptr.dtype.element_ty), mask=k < width)
    tl.store(scales_ptr + row, scale)
