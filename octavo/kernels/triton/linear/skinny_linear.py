"""A few rows times a weight, at the speed of reading the weight: the op `linear` for small steps.

With up to a few dozen rows, reading the weight is all the cost, and a library's tiles, made for thousands of rows,
leave much of the chip idle. Here a program owns a few output columns:

    vector    1 to 4 rows: the columns' whole weights are in registers before the rows arrive; then multiply and add
    matrix    up to 64 rows: pipelined along `in`, on the matrix units

The weights do not depend on the previous kernel, so a chained launch reads them (vector) or prefetches them to L2
(matrix) while that kernel still runs.

The kernel adds bias and residual to the product before it stores it. In `vector` it also computes act(gate) * up; a
program then owns gate columns and their up columns. An RMSNorm before the product is free in `vector`: its weight
multiplies x as it is loaded, and 1 / rms, one number per row, multiplies the result. In `matrix` both cost more than
the kernels they replace (docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

from octavo.kernels.ops import Activation
from octavo.kernels.triton.chain import prefetch_to_l2, wait_for_previous
from octavo.kernels.triton.elementwise.elementwise import activate


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one shape is cut. columns: output columns per program; depth: inputs per turn, 0 for all at once (vector)."""

    columns: int
    depth: int
    num_warps: int
    num_stages: int = 1

    def stages_in(self, num_bytes: int, num_rows: int, element_size: int) -> int:
        """How many stages of inputs fit in this much shared memory, at most `num_stages`."""
        stage = (num_rows + self.columns) * self.depth * element_size
        return max(1, min(self.num_stages, num_bytes // max(1, stage)))


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
    tiling: Tiling,
    chained: bool = False,
) -> None:
    """out = x W^T + bias (+ residual), or with `gate` act(x Wg^T) * (x Wu^T) for W = [Wg; Wu].

    norm_weight: x is RMSNormed first. It and `gate` need a vector tiling. residual may be `out` itself; `out` must
    not be x. tiling: from `choose_tiling`; where that is None, call `library_linear` instead.
    """
    num_rows, depth = x.shape
    columns = out.shape[1]
    vector = tiling.depth == 0
    assert weight.shape == (columns * (2 if gate else 1), depth), "weight [out, in], twice the rows if gated"
    assert weight.is_contiguous(), "weights are read as long runs"
    assert vector or (norm_weight is None and gate is None), "a matrix tiling takes no norm and no gate"
    rows = num_rows if vector else max(16, triton.next_power_of_2(num_rows))
    num_stages = tiling.stages_in(shared_memory(x.device), rows, x.element_size())
    _linear_kernel[(triton.cdiv(columns, tiling.columns),)](
        x, weight, out,
        weight if bias is None else bias,
        weight if norm_weight is None else norm_weight,
        out if residual is None else residual,
        eps, num_rows, columns, x.stride(0), out.stride(0), out.stride(0) if residual is None else residual.stride(0),
        K=depth, ROWS=rows, BN=tiling.columns,
        BK=triton.next_power_of_2(depth) if vector else tiling.depth, VECTOR=vector,
        HAS_BIAS=bias is not None, HAS_NORM=norm_weight is not None,
        HAS_RESIDUAL=residual is not None, GATE=gate or "", CHAINED=chained, launch_pdl=chained,
        num_warps=tiling.num_warps, num_stages=num_stages,
    )  # fmt: skip


def choose_tiling(num_rows: int, columns: int, depth: int) -> Tiling | None:
    """The tiling that beat cuBLAS on an H200 for this many rows, or None.

    Measured with cold weights in chained graphs (benchmarks/results/). One row: 1.04 to 5.4 times as fast, most
    where the output is narrow and cuBLAS leaves the chip idle. Up to four rows while a program's weights and rows
    fit its registers. Beyond that only for small weights, where an early start is worth more than a perfect tile: from
    16 MB on, cuBLAS streams at 4 TB/s and this kernel's matrix path at 3.
    """
    if num_rows <= (4 if depth <= 3072 and columns <= 16384 else 2 if depth <= 4096 else 1):
        return Tiling(max(1, 8192 // triton.next_power_of_2(depth)), 0, 8 if depth > 8192 else 4)
    if num_rows > 64 or depth > 3072 or columns > 4096:
        return None
    if columns > 2048:
        return Tiling(32, 256, 4, 4) if num_rows <= 32 else Tiling(32, 128, 4, 5)
    if num_rows > 16:
        return Tiling(16, 256, 4, 4)
    return Tiling(8, 256, 4, 4) if depth <= 2048 else Tiling(16, 512, 4, 3)


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a thread block may have; under the interpreter there is no limit."""
    if device.type != "cuda":
        return 1 << 30
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


def library_linear(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, added: torch.Tensor | None) -> None:
    """out = x W^T (+ added), by cuBLAS."""
    if added is None:
        torch.mm(x, weight.t(), out=out)
    elif added.data_ptr() == out.data_ptr():
        out.addmm_(x, weight.t())  # in place, so that nothing is copied
    else:
        torch.addmm(added, x, weight.t(), out=out)


@triton.jit(do_not_specialize=["num_rows"])
def _linear_kernel(
    x_ptr, weight_ptr, out_ptr, bias_ptr, norm_ptr, residual_ptr,
    eps, num_rows, columns, x_stride, out_stride, residual_stride,
    K: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, VECTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, GATE: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    n_load = tl.minimum(n, columns - 1).to(tl.int64)
    if VECTOR:
        k = tl.arange(0, BK)
        cell = weight_ptr + n_load[:, None] * K + k[None, :]
        w = tl.load(cell, mask=(k < K)[None, :], other=0.0)
        if GATE != "":
            w_up = tl.load(cell + columns.to(tl.int64) * K, mask=(k < K)[None, :], other=0.0)
        if HAS_NORM:
            norm = tl.load(norm_ptr + k, mask=k < K, other=0.0).to(tl.float32)
        wait_for_previous(CHAINED)
        for row in tl.static_range(ROWS):
            x = tl.load(x_ptr + row * x_stride + k, mask=k < K, other=0.0).to(tl.float32)
            rstd = 1.0
            if HAS_NORM:
                rstd = tl.rsqrt(tl.sum(x * x, 0) / K + eps)
                x = x * norm
            y = tl.sum(w.to(tl.float32) * x[None, :], 1)[None, :] * rstd
            up = y
            if GATE != "":
                up = tl.sum(w_up.to(tl.float32) * x[None, :], 1)[None, :] * rstd
            _finish(
                y, up, row + tl.arange(0, 1), n, out_ptr, bias_ptr, residual_ptr, num_rows, columns,
                out_stride, residual_stride, HAS_BIAS, HAS_RESIDUAL, GATE,
            )  # fmt: skip
    else:
        m = tl.arange(0, ROWS)
        if CHAINED:
            _prefetch(weight_ptr + n_load * K, K)
        wait_for_previous(CHAINED)
        y = _multiply(x_ptr, weight_ptr, m, n_load, num_rows, x_stride, K, ROWS, BN, BK)
        _finish(
            y, y, m, n, out_ptr, bias_ptr, residual_ptr, num_rows, columns,
            out_stride, residual_stride, HAS_BIAS, HAS_RESIDUAL, GATE,
        )  # fmt: skip


@triton.jit
def _prefetch(rows, K: tl.constexpr):
    line = tl.arange(0, triton.next_power_of_2(triton.cdiv(K, 64))) * 64
    prefetch_to_l2(rows[:, None] + tl.minimum(line, K - 1)[None, :])


@triton.jit
def _multiply(
    x_ptr, weight_ptr, m, n, num_rows, x_stride, K: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """[ROWS, BN] products."""
    k = tl.arange(0, BK)
    acc = tl.zeros([ROWS, BN], tl.float32)
    for start in range(0, K, BK):
        inside = start + k < K
        w = tl.load(weight_ptr + n[None, :] * K + (start + k)[:, None], mask=inside[:, None], other=0.0)
        x = tl.load(
            x_ptr + m[:, None] * x_stride + (start + k)[None, :],
            mask=(m < num_rows)[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        acc = tl.dot(x, w, acc, input_precision="ieee")
    return acc


@triton.jit
def _finish(
    y, up, m, n, out_ptr, bias_ptr, residual_ptr, num_rows, columns, out_stride, residual_stride,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Bias, gate, residual; and store."""
    mask = (m < num_rows)[:, None] & (n < columns)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
    if GATE != "":
        if HAS_BIAS:
            up += tl.load(bias_ptr + columns + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
        y = activate(y, GATE) * up
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + m[:, None] * residual_stride + n[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + m[:, None] * out_stride + n[None, :], y.to(out_ptr.dtype.element_ty), mask=mask)
