"""A few rows times a matrix that is codes with scales, and such a matrix made dense for more rows: the op `linear`.

One row is multiplied by whole rows of codes, 2 to MAX_ROWS by tiles on the matrix units. Codes are read once and become
numbers in registers. If a matrix's inputs are in an order of their importance, the kernels look up which input meets
which column, so nothing is moved.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.scaled import NIBBLES
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.coded.numbers import are_nibbles, first_inputs, load_tile, multiply_codes, row_product
from octavo.kernels.triton.coded.weight_stack import WeightStack
from octavo.kernels.triton.linear.skinny_linear import shared_memory

MAX_ROWS = 64
_ONE_ROW_BYTES = 8192  # of codes, for a program
_PROGRAMS = 256  # that keep a large GPU busy
_DENSE_ROWS, _DENSE_COLUMNS = 16, 256


def coded_linear(
    x: torch.Tensor, weight: WeightStack, out: torch.Tensor, *, bias: torch.Tensor | None = None,
    chained: bool = False,
) -> None:  # fmt: skip
    """out [T, out] = x W^T + bias; out must not be x."""
    (_, columns, depth), num_rows = weight.shape, len(x)
    assert num_rows <= MAX_ROWS, f"{num_rows} rows; the kernel takes {MAX_ROWS}"
    assert x.shape[1] == depth, f"{x.shape[1]} columns times a weight of {depth}"
    is_small = weight.code in NIBBLES
    if num_rows == 1:
        pad = triton.next_power_of_2(depth)
        tile = {"BM": 1, "BN": max(1, _ONE_ROW_BYTES * (2 if is_small else 1) // pad), "BK": pad}
        warps = 8 if pad > 8192 else 4
    else:
        wide = next((width for width in (64, 32) if columns // width >= _PROGRAMS), 16)
        tile = {"BM": max(16, triton.next_power_of_2(num_rows)), "BN": wide, "BK": 256 if is_small else 128}
        warps = 4 if wide > 16 else 2
    turn = (tile["BM"] * x.element_size() + tile["BN"] * (0.5 if is_small else 1) + tile["BN"] / 3) * tile["BK"]
    data, scales, zeros = weight.tensors
    _linear_kernel[(triton.cdiv(columns, tile["BN"]),)](
        x, data, scales, zeros, x if weight.order is None else weight.order,
        x if bias is None else bias, out, num_rows, x.stride(0),
        out.stride(0), K=depth, N=columns, HAS_BIAS=bias is not None, IS_SORTED=weight.order is not None, **tile,
        **weight.constants, CHAINED=chained, launch_pdl=chained, num_warps=warps,
        num_stages=max(1, min(3, int(shared_memory(x.device) / turn))),
    )  # fmt: skip


def make_dense(weight: WeightStack, out: torch.Tensor, *, chained: bool = False) -> None:
    """The numbers of a matrix: out [out, in], contiguous."""
    _, columns, depth = weight.shape
    data, scales, zeros = weight.tensors
    _dense_kernel[(triton.cdiv(columns, _DENSE_ROWS), triton.cdiv(depth, _DENSE_COLUMNS))](
        data, scales, zeros, data if weight.order is None else weight.order, out, K=depth, N=columns, BN=_DENSE_ROWS,
        BK=_DENSE_COLUMNS, IS_SORTED=weight.order is not None, **weight.constants, CHAINED=chained, launch_pdl=chained,
        num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def _linear_kernel(
    x_ptr, weight_ptr, scales_ptr, zeros_ptr, order_ptr, bias_ptr, out_ptr, num_rows, x_stride, out_stride,
    K: tl.constexpr, N: tl.constexpr, HAS_BIAS: tl.constexpr, IS_SORTED: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, CODE: tl.constexpr, GROUP: tl.constexpr, ROW_BLOCK: tl.constexpr,
    ZEROS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    n_load, m = tl.minimum(n, N - 1), tl.arange(0, BM)
    wait_for_previous(CHAINED)
    if BM == 1:
        y = row_product(
            weight_ptr, scales_ptr, zeros_ptr, n_load.to(tl.int64), x_ptr, order_ptr, True, K, BK, CODE, GROUP,
            ROW_BLOCK, ZEROS, IS_SORTED,
        )[None, :]  # fmt: skip
    else:
        rows = x_ptr + tl.minimum(m, num_rows - 1).to(tl.int64) * x_stride
        y, _ = multiply_codes(
            rows, weight_ptr, scales_ptr, zeros_ptr, order_ptr, n_load.to(tl.int64), K, BM, BN, BK, 0, CODE, GROUP,
            ROW_BLOCK, ZEROS, IS_SORTED, 0,
        )  # fmt: skip
        if GROUP == 0:
            y *= tl.load(scales_ptr + n_load)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + n_load).to(tl.float32)[None, :]
    at = out_ptr + m.to(tl.int64)[:, None] * out_stride + n[None, :]
    tl.store(at, y.to(out_ptr.dtype.element_ty), mask=(m < num_rows)[:, None] & (n < N)[None, :])


@triton.jit
def _dense_kernel(
    weight_ptr, scales_ptr, zeros_ptr, order_ptr, out_ptr, K: tl.constexpr, N: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, IS_SORTED: tl.constexpr, CODE: tl.constexpr, GROUP: tl.constexpr, ROW_BLOCK: tl.constexpr,
    ZEROS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    n, start = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1) * BK
    row, k = tl.minimum(n, N - 1).to(tl.int64), start + first_inputs(BK, CODE)
    first, second = load_tile(
        weight_ptr, scales_ptr, zeros_ptr, row, start, K, BK, CODE, GROUP, ROW_BLOCK, ZEROS
    )  # fmt: skip
    if GROUP == 0:
        scales = tl.load(scales_ptr + row)[:, None]
        first, second = first * scales, second * scales
    wait_for_previous(CHAINED)
    _store_columns(out_ptr, order_ptr, first, n, k, K, N, IS_SORTED)
    if are_nibbles(CODE):
        _store_columns(out_ptr, order_ptr, second, n, k + 16, K, N, IS_SORTED)


@triton.jit
def _store_columns(out_ptr, order_ptr, w, n, k, K: tl.constexpr, N: tl.constexpr, IS_SORTED: tl.constexpr):
    at = tl.load(order_ptr + k, mask=k < K, other=0) if IS_SORTED else k
    cell = out_ptr + n.to(tl.int64)[:, None] * K + at[None, :]
    tl.store(cell, w.to(out_ptr.dtype.element_ty), mask=(n < N)[:, None] & (k < K)[None, :])
