"""Shared by the two Hopper attention kernels: boxes of the pool, barriers, and records of work.

    loader    fetches a piece of work ──> record of eight numbers ──full──> computers
                                          in shared memory, two of them <──free──

Gluon is the part of Triton that assigns work to warps and places tiles in memory. This file needs a Triton with Gluon.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from octavo.kernels.triton.attention.memory import LayerPool

# their names until Triton 3.6, which are gone from 3.9
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
load_box = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


def boxes(matrix: torch.Tensor, box: list[int]) -> TensorDescriptor:
    """A descriptor of a matrix that the copy engine reads in boxes: of 16-bit elements as the matrix units want them,
    of codes row by row."""
    return _boxes(matrix, list(matrix.shape), list(matrix.stride()), box)


def _boxes(base: torch.Tensor, shape: list[int], strides: list[int], box: list[int]) -> TensorDescriptor:
    width = 8 * base.element_size()
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128 if width > 8 else 0, element_bitwidth=width)
    return TensorDescriptor(base, shape, strides, box, layout)


class PoolBoxes:
    """Descriptors of the layers' pools. Each is made once, because that costs the host more than a small kernel costs
    the GPU."""

    def __init__(self) -> None:
        self._of: dict[LayerPool, TensorDescriptor] = {}

    def boxes(self, pool: LayerPool, tokens: int) -> TensorDescriptor:
        """tokens: those of a box, which has one head's keys or values."""
        if pool not in self._of:
            rows = pool.rows
            self._of[pool] = _boxes(rows.base, list(rows.shape), list(rows.strides), [tokens, rows.shape[1]])
        return self._of[pool]


@gluon.jit
def make_barriers(number: gl.constexpr, count: gl.constexpr):
    """`number` barriers; `count` arrivals complete each."""
    barriers = gl.allocate_shared_memory(gl.int64, [number, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(number):
        mbarrier.init(barriers.index(i), count=count)
    return barriers


@gluon.jit
def write_record(record, a0, a1, a2, a3, a4, a5, a6, a7):
    layout: gl.constexpr = gl.BlockedLayout([8], [32], [1], [0])
    j = gl.arange(0, 8, layout)
    low = gl.where(j < 2, gl.where(j == 0, a0, a1), gl.where(j == 2, a2, a3))
    high = gl.where(j < 6, gl.where(j == 4, a4, a5), gl.where(j == 6, a6, a7))
    record.store(gl.where(j < 4, low, high))


@gluon.jit
def read_record(records, full, turn):
    """Wait for the turn-th record and load it into registers."""
    mbarrier.wait(full.index(turn % 2), turn // 2 & 1)
    layout: gl.constexpr = gl.BlockedLayout([8], [32], [gl.num_warps()], [0])
    return records.index(turn % 2).load(layout)


@gluon.jit
def field(record, index: gl.constexpr):
    return gl.sum(gl.where(gl.arange(0, 8, record.type.layout) == index, record, 0), 0)
