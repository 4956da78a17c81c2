"""A few rows times a weight, at the speed of reading the weight: the op `linear` for small steps.

With up to a few dozen rows the weight's bytes are all the cost, and a library's tiles, made for thousands of
rows, leave much of the chip idle. Here a program owns a few output columns and walks their weights:

    x [M, in]   ·   weight [out, in]                     epilogue
    M <= 16 or so   program p: rows n0 .. n0+BN-1        y
                    pipelined along `in`                 y + residual
                                                         act(gate) * up     (a gate row and its up row)

An RMSNorm before the product costs no kernel: its weight multiplies x on the way in, and the row's 1 / rms,
being one number, multiplies the result. The weights do not depend on the previous kernel: a chained launch
asks for them before it waits, so that they are in L2 when the rows arrive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.ops import Activation
from octavo.kernels.triton.chain import prefetch_to_l2, wait_for_previous
from octavo.kernels.triton.elementwise import activate


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one shape is cut. columns: output columns a program; depth: inputs a step."""

    columns: int
    depth: int
    num_warps: int
    num_stages: int


def skinny_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    residual: torch.Tensor | None = None,
    gate: Activation | None = None,
    tiling: Tiling | None = None,
    chained: bool = False,
) -> None:
    """out = x W^T + bias (+ residual), or with `gate` act(x Wg^T) * (x Wu^T) for W = [Wg; Wu].

    norm_weight: x is RMSNormed first. residual may be `out` itself. For x of up to 64 rows.
    """
    num_rows, depth = x.shape
    columns = out.shape[1]
    assert weight.shape == (columns * (2 if gate else 1), depth), "weight [out, in], twice the rows if gated"
    assert weight.is_contiguous(), "weights are read as long runs"
    tile = tiling or choose_tiling(num_rows, columns, depth)
    _linear_kernel[(triton.cdiv(columns, tile.columns),)](
        x, weight, out,
        weight if bias is None else bias,
        weight if norm_weight is None else norm_weight,
        out if residual is None else residual,
        eps, num_rows, columns, x.stride(0), out.stride(0), out.stride(0) if residual is None else residual.stride(0),
        K=depth, ROWS=max(16, triton.next_power_of_2(num_rows)), BN=tile.columns, BK=tile.depth,
        ONE_ROW=num_rows == 1, HAS_BIAS=bias is not None, HAS_NORM=norm_weight is not None,
        HAS_RESIDUAL=residual is not None, GATE=gate or "", CHAINED=chained, launch_pdl=chained,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def choose_tiling(num_rows: int, columns: int, depth: int) -> Tiling:
    """Enough programs to fill the chip, each with several loads in flight."""
    if num_rows == 1:
        return Tiling(4 if columns <= 2048 else 8, 1024, 4, 1)
    return Tiling(8 if columns <= 1024 else 16 if columns <= 16384 else 64, 256, 4, 4)


@triton.jit
def _linear_kernel(
    x_ptr, weight_ptr, out_ptr, bias_ptr, norm_ptr, residual_ptr,
    eps, num_rows, columns, x_stride, out_stride, residual_stride,
    K: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ONE_ROW: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, GATE: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    n_load = tl.minimum(n, columns - 1).to(tl.int64)
    if CHAINED:
        # lines of 64 elements
        line = tl.arange(0, triton.next_power_of_2(K // 64)) * 64
        prefetch_to_l2(weight_ptr + n_load[:, None] * K + tl.minimum(line, K - 64)[None, :])
        if GATE != "":
            prefetch_to_l2(weight_ptr + (n_load + columns)[:, None] * K + tl.minimum(line, K - 64)[None, :])
    wait_for_previous(CHAINED)

    if ONE_ROW:
        m = tl.arange(0, 1)
        y, rstd = _one_row(x_ptr, weight_ptr, norm_ptr, n_load, eps, K, BN, BK, HAS_NORM)
        if GATE != "":
            up, _ = _one_row(x_ptr, weight_ptr, norm_ptr, n_load + columns, eps, K, BN, BK, HAS_NORM)
    else:
        m = tl.arange(0, ROWS)
        y, up, rstd = _few_rows(
            x_ptr, weight_ptr, norm_ptr, m, n_load, columns, num_rows, x_stride, eps, K, ROWS, BN, BK, HAS_NORM, GATE
        )
    mask = (m < num_rows)[:, None] & (n < columns)[None, :]
    y *= rstd
    if HAS_BIAS:
        y += tl.load(bias_ptr + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
    if GATE != "":
        up *= rstd
        if HAS_BIAS:
            up += tl.load(bias_ptr + columns + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
        y = activate(y, GATE) * up
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + m[:, None] * residual_stride + n[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + m[:, None] * out_stride + n[None, :], y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _one_row(
    x_ptr, weight_ptr, norm_ptr, n, eps, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, HAS_NORM: tl.constexpr
):  # fmt: skip
    """[1, BN] products and [1, 1] 1 / rms: multiply and add, no matrix unit to feed."""
    k = tl.arange(0, BK)
    acc = tl.zeros([BN, BK], tl.float32)
    squares = tl.zeros([BK], tl.float32)
    for start in tl.static_range(0, K, BK):
        inside = start + k < K
        w = tl.load(weight_ptr + n[:, None] * K + (start + k)[None, :], mask=inside[None, :], other=0.0)
        x = tl.load(x_ptr + start + k, mask=inside, other=0.0)
        if HAS_NORM:
            squares += x.to(tl.float32) * x.to(tl.float32)
            norm = tl.load(norm_ptr + start + k, mask=inside, other=0.0).to(tl.float32)
            x = (x.to(tl.float32) * norm).to(x.dtype)
        acc += w.to(tl.float32) * x.to(tl.float32)[None, :]
    rstd = tl.rsqrt(tl.sum(squares, 0) / K + eps) if HAS_NORM else 1.0
    return tl.sum(acc, 1)[None, :], rstd


@triton.jit
def _few_rows(
    x_ptr, weight_ptr, norm_ptr, m, n, columns, num_rows, x_stride, eps,
    K: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    HAS_NORM: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """[ROWS, BN] products (and those of the up half) and [ROWS, 1] 1 / rms, on the matrix units."""
    k = tl.arange(0, BK)
    acc = tl.zeros([ROWS, BN], tl.float32)
    up = tl.zeros([ROWS, BN], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for start in range(0, K, BK):
        inside = start + k < K
        w = tl.load(weight_ptr + n[None, :] * K + (start + k)[:, None], mask=inside[:, None], other=0.0)
        x = tl.load(
            x_ptr + m[:, None] * x_stride + (start + k)[None, :],
            mask=(m < num_rows)[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        if HAS_NORM:
            squares += tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
            norm = tl.load(norm_ptr + start + k, mask=inside, other=0.0).to(tl.float32)
            x = (x.to(tl.float32) * norm[None, :]).to(x.dtype)
        acc = tl.dot(x, w, acc, input_precision="ieee")
        if GATE != "":
            w_up = tl.load(
                weight_ptr + (n + columns)[None, :] * K + (start + k)[:, None], mask=inside[:, None], other=0.0
            )
            up = tl.dot(x, w_up, up, input_precision="ieee")
    rstd = tl.rsqrt(squares / K + eps)[:, None] if HAS_NORM else 1.0
    return acc, up, rstd
