"""x W^T with the same sums for any number of rows: the op `linear` of a deterministic engine.

A library chooses tiles, and how to split the inputs, by the number of rows, and each choice adds up in another order.
Here every element of the result is one sum over the inputs in their order, `depth` at a time, in float32, whichever
rows are beside it:

    x [rows, in]      | depth | depth | ...        out[m, n] = ((x[m, :depth] W[n, :depth]) + ...) + bias[n]
    W [out, in]       | depth | depth | ...        tiles of rows x columns change who computes it, not how

Few rows take low tiles of few columns, so that enough programs read the weight at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.chain import wait_for_previous


@dataclass(frozen=True, slots=True)
class FixedTile:
    """At least 64 rows: with fewer, Hopper's matrix units would be used in another way."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


def tile_for(num_rows: int, columns: int) -> FixedTile:
    if num_rows <= 64:
        width = next(width for most, width in ((1024, 16), (4096, 32), (1 << 31, 64)) if columns <= most)
        return FixedTile(64, width, 4, 5)
    return FixedTile(64, 64, 4, 4) if num_rows <= 512 else FixedTile(128, 128, 8, 3)


def fixed_linear(
    x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, *, bias: torch.Tensor | None = None, chained: bool = False
) -> None:
    """out = x W^T + bias. x [T, in], weight [out, in], out [T, out], which must not be x."""
    num_rows, depth = x.shape
    columns = out.shape[1]
    assert weight.shape == (columns, depth), f"a weight of {tuple(weight.shape)}, not {(columns, depth)}"
    assert weight.is_contiguous(), "weights are read as long runs"
    tile = tile_for(num_rows, columns)
    num_row_tiles = triton.cdiv(num_rows, tile.rows)
    _fixed_linear_kernel[(num_row_tiles * triton.cdiv(columns, tile.columns),)](
        x, weight, out, weight if bias is None else bias,
        num_rows, columns, num_row_tiles, x.stride(0), out.stride(0),
        K=depth, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=128 // x.element_size(), HAS_BIAS=bias is not None,
        CHAINED=chained, launch_pdl=chained, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "num_row_tiles"])
def _fixed_linear_kernel(
    x_ptr, weight_ptr, out_ptr, bias_ptr, num_rows, columns, num_row_tiles, x_stride, out_stride,
    K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, HAS_BIAS: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Neighbouring programs have the same columns, whose weights they then find in the cache."""
    pid = tl.program_id(0)
    m = pid % num_row_tiles * ROWS + tl.arange(0, ROWS)
    n = pid // num_row_tiles * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    x_cell = x_ptr + tl.minimum(m, num_rows - 1).to(tl.int64)[:, None] * x_stride + k[None, :]
    w_cell = weight_ptr + tl.minimum(n, columns - 1).to(tl.int64)[None, :] * K + k[:, None]
    y = tl.zeros([ROWS, COLUMNS], tl.float32)
    wait_for_previous(CHAINED)
    for start in range(0, K, DEPTH):
        if K % DEPTH == 0:
            x, w = tl.load(x_cell + start), tl.load(w_cell + start)
        else:
            inside = start + k < K
            x = tl.load(x_cell + start, mask=inside[None, :], other=0.0)
            w = tl.load(w_cell + start, mask=inside[:, None], other=0.0)
        y = tl.dot(x, w, y, input_precision="ieee")
    if HAS_BIAS:
        y += tl.load(bias_ptr + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
    at = out_ptr + m.to(tl.int64)[:, None] * out_stride + n[None, :]
    tl.store(at, y.to(out_ptr.dtype.element_ty), mask=(m < num_rows)[:, None] & (n < columns)[None, :])
