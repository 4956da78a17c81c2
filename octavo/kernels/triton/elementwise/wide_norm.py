"""WideNorm: RMSNorm of all heads' queries together, and of their keys, of which each rank has some.

    mean squares of a rank's columns | all_reduce, four float32 numbers a row | each column times its factor

On one rank it is two norms of a run of columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.elementwise import norm


@dataclass(frozen=True, slots=True, eq=False)
class WideNorm:
    """queries, keys: weights of this rank's columns. num_ranks: that have as many. add_up: replaces numbers by the sum
    of all ranks'; None: there is one."""

    queries: torch.Tensor
    keys: torch.Tensor
    eps: float
    num_ranks: int
    add_up: Callable[[torch.Tensor], None] | None

    def run(self, x: torch.Tensor, room: torch.Tensor | None = None, *, chained: bool) -> None:
        """x [T, queries, keys, the rest], in place. room: [T, 8] of any type, for the means, if there are ranks."""
        if room is None:
            first = 0
            for weight in (self.queries, self.keys):
                part = x[:, first : first + len(weight)]
                norm.rms_norm(part, weight, self.eps, part, chained=chained)
                first += len(weight)
            return
        means = room.view(torch.float32)
        self._launch(x, means, chained, scales=False)
        if self.add_up is not None:
            self.add_up(means)
        self._launch(x, means, chained, scales=True)

    def _launch(self, x: torch.Tensor, means: torch.Tensor, chained: bool, *, scales: bool) -> None:
        pad = triton.next_power_of_2(max(len(self.queries), len(self.keys)))
        _wide_norm_kernel[(len(x), 2)](
            x, self.queries, self.keys, means, self.eps, self.num_ranks, x.stride(0),
            QUERIES=len(self.queries), KEYS=len(self.keys), PAD=pad, MEANS=means.shape[1], SCALES=scales,
            CHAINED=chained, launch_pdl=chained, num_warps=min(16, max(1, pad // 512)),
        )  # fmt: skip


@triton.jit
def _wide_norm_kernel(
    x_ptr, queries_ptr, keys_ptr, means_ptr, eps, num_ranks, x_stride,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PAD: tl.constexpr, MEANS: tl.constexpr, SCALES: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    width = tl.where(part == 0, QUERIES, KEYS)
    col = tl.arange(0, PAD)
    mask = col < width
    wait_for_previous(CHAINED)
    at = x_ptr + row * x_stride + part * QUERIES + col
    x = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    mean = means_ptr + row * MEANS + part
    if SCALES:
        weight = tl.load(queries_ptr + col, mask=mask & (part == 0), other=0.0).to(tl.float32)
        weight += tl.load(keys_ptr + col, mask=mask & (part == 1), other=0.0).to(tl.float32)
        y = x * tl.rsqrt(tl.load(mean) + eps) * weight
        tl.store(at, y.to(x_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(mean, tl.sum(x * x, 0) / (width * num_ranks))
        for unused in tl.static_range(2, MEANS, 2):
            tl.store(mean + unused, 0.0)
