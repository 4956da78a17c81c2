"""Launches csrc/cuda/wide_int4.cu: many rows of bfloat16 times a weight of int4 in groups, on Hopper.

The rows' inputs are dealt first: a thread of the kernel has other inputs of a product than Hopper's instructions have.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import Structure, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.module import Kernel, TensorMap
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight, address
from octavo.kernels.triton.linear.quantized import deal_inputs

#: rows up to which it is always faster than cuBLAS times a matrix that is made dense first; and up to which it may be
MOST_ROWS, MOST_ROWS_OF_FULL_TURNS = 256, 1024
_HOPPER = 9
_THREADS, _BOX = 384, 64
#: microseconds for each 4,096 inputs: to make a column dense, to multiply it by a row, to deal a row's inputs
_DENSE_COLUMN, _DENSE_PRODUCT, _DEALT_ROW = 2.73e-3, 1.25e-5, 7e-3


class _Launch(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("codes", "scales", "zeros", "bias", "out")),
        ("out_stride", c_int64),
        *(
            (name, c_int)
            for name in ("num_rows", "columns", "depth", "group_bits", "whole_tiles", "num_tiles", "is_split")
        ),
    )


@dataclass(frozen=True, slots=True)
class Variant:
    """What the kernel is compiled for. rows: of a tile."""

    has_zeros: bool
    has_short_scales: bool
    rows: int

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "HAS_ZEROS": int(self.has_zeros),
            "HAS_SHORT_SCALES": int(self.has_short_scales),
            "ROW_TILE": self.rows,
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("wide_int4", macros, gpu.capability)


@cache
def _kernel(variant: Variant, gpu: GPU) -> tuple[Kernel, int]:
    """And the bytes of shared memory that it needs."""
    kernel = Kernel(variant.compile(gpu), "octavo_wide_int4")
    return kernel, kernel.take_shared()


def takes_wide(weight: QuantizedWeight, x: torch.Tensor, gpu: GPU) -> bool:
    """Whether to call `wide_int4`."""
    fits = weight.layout == "int4" and weight.kind == "groups" and x.dtype == torch.bfloat16
    if not fits or gpu.capability[0] != _HOPPER or len(x) > MOST_ROWS_OF_FULL_TURNS:
        return False
    cost = Tiles.of(len(x), weight.columns, gpu.num_multiprocessors).cost(gpu.num_multiprocessors)
    dense = weight.columns * (_DENSE_COLUMN + _DENSE_PRODUCT * len(x))
    return len(x) <= MOST_ROWS or cost + _DEALT_ROW * len(x) < dense


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a tile. whole, half, quarter: microseconds of a turn for each 4,096 inputs, of an H200 with such tiles, or
    with those of half or a quarter of the outputs."""

    rows: int
    outputs: int
    whole: float
    half: float
    quarter: float | None = None


#: as measured in benchmarks/results/2026-11-30-quantised-gpu.md
SHAPES = (Shape(128, 256, 50, 28, 20), Shape(192, 128, 45.5, 29.5), Shape(256, 128, 48.5, 32))


@dataclass(frozen=True, slots=True)
class Tiles:
    """shape: of the first `whole` tiles, after which come those of half as many outputs; count: all. is_split: all are
    of 64 outputs, and each half of a block has half of the inputs."""

    shape: Shape
    whole: int
    count: int
    is_split: bool = False

    @classmethod
    @cache
    def of(cls, num_rows: int, columns: int, num_blocks: int) -> Tiles:
        """Those that cost least, where each block takes one tile a turn."""
        every = [tiles for shape in SHAPES for tiles in cls.all_of(shape, num_rows, columns, num_blocks)]
        return min(every, key=lambda tiles: tiles.cost(num_blocks))

    @classmethod
    def all_of(cls, shape: Shape, num_rows: int, columns: int, num_blocks: int) -> Iterator[Tiles]:
        """Whole ones, or in whole turns; those of half as many outputs; all split."""
        rows = -(-num_rows // shape.rows)
        count = rows * -(-columns // shape.outputs)
        yield cls(shape, count, count)
        halves = rows * -(-columns * 2 // shape.outputs)
        turns = halves // 2 // num_blocks * num_blocks // rows * rows
        yield from (cls(shape, whole, halves - whole) for whole in {0, turns})
        if shape.quarter is not None:
            yield cls(shape, 0, rows * -(-columns // 64), is_split=True)

    def cost(self, num_blocks: int) -> float:
        """Microseconds for each 4,096 inputs, about."""
        rest = self.shape.quarter if self.is_split and self.shape.quarter is not None else self.shape.half
        turns, last = -(-self.whole // num_blocks), -(-(self.count - self.whole) // num_blocks)
        return turns * self.shape.whole + last * rest


def wide_int4(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, out: torch.Tensor, room: torch.Tensor,
    *, gpu: GPU,
) -> None:  # fmt: skip
    """out [T, out] = x [T, in] W^T + bias, all in bfloat16. room: of bfloat16, flat, for the rows.

    If it has more room, the copy engine reads what lies behind the rows, too, to fill a tile: it takes longer for rows
    that it must make up. Their results are not stored."""
    num_rows, depth = x.shape
    dealt = room[: num_rows * depth].view(num_rows, depth)
    deal_inputs(x, dealt, chained=gpu.chains)
    tiles = Tiles.of(num_rows, weight.columns, gpu.num_multiprocessors)
    shape = tiles.shape
    launch = _Launch(
        weight.data.data_ptr(), weight.scales.data_ptr(), address(weight.zeros), address(bias), out.data_ptr(),
        out.stride(0), num_rows, weight.columns, depth, weight.group.bit_length() - 1,
        tiles.whole, tiles.count, tiles.is_split,
    )  # fmt: skip
    there = min(-(-num_rows // shape.rows) * shape.rows, room.numel() // depth)
    rows = TensorMap.of_rows(room.data_ptr(), there, depth, is_half=False, box_rows=shape.rows, box_dim=_BOX)
    has_zeros = weight.zeros is not None
    kernel, shared_bytes = _kernel(Variant(has_zeros, weight.has_short_scales and not has_zeros, shape.rows), gpu)
    kernel.launch(
        min(gpu.num_multiprocessors, tiles.count), _THREADS, (launch, rows), shared_bytes=shared_bytes,
        stream=torch.cuda.current_stream().cuda_stream, chained=gpu.chains,
    )  # fmt: skip
