"""Rows of a table by index: token embeddings, and learned positions."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.chain import wait_for_previous

_TILE = 1024


def embedding(
    table: torch.Tensor,
    index: torch.Tensor,
    out: torch.Tensor,
    *,
    offset: int = 0,
    scale: float = 1.0,
    chained: bool = False,
) -> None:
    """out [T, width] = table[index + offset] * scale. The table may have another dtype than `out`. An index of -1, the
    token of a draw that failed when the next step had been launched, reads as 0: nobody takes what comes of it."""
    width = table.shape[1]
    _embedding_kernel[(len(index), triton.cdiv(width, _TILE))](
        table, index, out, offset, scale, width, table.stride(0), out.stride(0),
        TILE=_TILE, CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


@triton.jit
def _embedding_kernel(
    table, index, out, offset, scale, width, table_stride, out_stride, TILE: tl.constexpr, CHAINED: tl.constexpr
):
    wait_for_previous(CHAINED)
    token = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * TILE + tl.arange(0, TILE)
    row = (tl.maximum(tl.load(index + token), 0) + offset).to(tl.int64)
    x = tl.load(table + row * table_stride + col, mask=col < width, other=0.0).to(tl.float32)
    tl.store(out + token * out_stride + col, (x * scale).to(out.dtype.element_ty), mask=col < width)
