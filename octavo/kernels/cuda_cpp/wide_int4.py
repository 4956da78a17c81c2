"""Launches csrc/cuda/wide_int4.cu: many rows of bfloat16 times a weight of int4 in groups, on Hopper.

The rows' inputs are dealt first: a thread of the kernel has other inputs of a product than Hopper's instructions have.
"""

from __future__ import annotations

from ctypes import Structure, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.module import Kernel, TensorMap
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight, address
from octavo.kernels.triton.linear.quantized import deal_inputs

#: rows up to which it is faster than cuBLAS times a matrix that is made dense first; up to which it is if tiles of 128
#: rows and 256 outputs fill the GPU; and if tiles of 256 rows and 128 outputs do, for which fewer codes become numbers
#: (benchmarks/results/2026-11-30-quantised-gpu.md)
MOST_ROWS, MOST_ROWS_OF_WHOLE_TILES, MOST_ROWS_OF_TALL_TILES = 256, 512, 1024
_HOPPER = 9
_THREADS, _BOX = 384, 64
_ROWS, _TALL = 128, 256  # of a tile
_LEAST_LAST_ROWS = 161  # of the last tall tile


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
    rows: int

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "HAS_ZEROS": int(self.has_zeros),
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
    if not fits or gpu.capability[0] != _HOPPER:
        return False
    tiles = Tiles.of(len(x), weight.columns, gpu.num_multiprocessors)
    most = MOST_ROWS_OF_TALL_TILES if tiles.rows == _TALL else MOST_ROWS_OF_WHOLE_TILES if tiles.whole else MOST_ROWS
    return len(x) <= most


@dataclass(frozen=True, slots=True)
class Tiles:
    """rows: of a tile; whole: tiles, in whole turns of all blocks, after which come those of half as many outputs;
    count: all. is_split: all are of 64 outputs, and each half of a block has half of the inputs."""

    rows: int
    whole: int
    count: int
    is_split: bool

    @classmethod
    def of(cls, num_rows: int, columns: int, num_blocks: int) -> Tiles:
        rows, halves = -(-num_rows // _ROWS), -(-columns // _ROWS)
        tall = -(-num_rows // _TALL) * halves
        if (num_rows - 1) % _TALL + 1 >= _LEAST_LAST_ROWS and tall >= num_blocks:
            return cls._tall(-(-num_rows // _TALL), tall, num_blocks)
        if rows * halves * 2 <= num_blocks:
            return cls(_ROWS, 0, rows * -(-columns // 64), is_split=True)
        whole = halves * rows // 2 // num_blocks * num_blocks // rows * rows
        return cls(_ROWS, whole, halves * rows - whole, is_split=False)

    @classmethod
    def _tall(cls, rows: int, count: int, num_blocks: int) -> Tiles:
        """The last turn is of halves, if these are not more than one."""
        whole = count // num_blocks * num_blocks // rows * rows
        if (count - whole) * 2 > num_blocks:
            whole = count
        return cls(_TALL, whole, 2 * count - whole, is_split=False)


def wide_int4(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, out: torch.Tensor, room: torch.Tensor,
    *, gpu: GPU,
) -> None:  # fmt: skip
    """out [T, out] = x [T, in] W^T + bias, all in bfloat16. room: of bfloat16, flat, for the rows."""
    num_rows, depth = x.shape
    dealt = room[: num_rows * depth].view(num_rows, depth)
    deal_inputs(x, dealt, chained=gpu.chains)
    tiles = Tiles.of(num_rows, weight.columns, gpu.num_multiprocessors)
    launch = _Launch(
        weight.data.data_ptr(), weight.scales.data_ptr(), address(weight.zeros), address(bias), out.data_ptr(),
        out.stride(0), num_rows, weight.columns, depth, weight.group.bit_length() - 1,
        tiles.whole, tiles.count, tiles.is_split,
    )  # fmt: skip
    rows = TensorMap.of_rows(dealt.data_ptr(), num_rows, depth, is_half=False, box_rows=tiles.rows, box_dim=_BOX)
    kernel, shared_bytes = _kernel(Variant(weight.zeros is not None, tiles.rows), gpu)
    kernel.launch(
        min(gpu.num_multiprocessors, tiles.count), _THREADS, (launch, rows), shared_bytes=shared_bytes,
        stream=torch.cuda.current_stream().cuda_stream, chained=gpu.chains,
    )  # fmt: skip
