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

#: rows up to which it is faster than cuBLAS times a matrix that is made dense first, and up to which it is if tiles of
#: 256 outputs, which read rows half as often, fill the GPU (benchmarks/results/2026-11-30-quantised-gpu.md)
MOST_ROWS, MOST_ROWS_OF_WHOLE_TILES = 256, 512
_HOPPER = 9
_THREADS, _ROWS, _OUTPUTS, _BOX = 384, 128, 128, 64


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
    """What the kernel is compiled for."""

    has_zeros: bool

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {"HAS_ZEROS": int(self.has_zeros), "IS_CHAINED": int(gpu.chains)}
        return compile_kernel("wide_int4", macros, gpu.capability)


@cache
def _kernel(variant: Variant, gpu: GPU) -> tuple[Kernel, int]:
    """And the bytes of shared memory that it needs."""
    kernel = Kernel(variant.compile(gpu), "octavo_wide_int4")
    return kernel, kernel.take_shared()


def takes_wide(weight: QuantizedWeight, x: torch.Tensor, gpu: GPU) -> bool:
    """Whether to call `wide_int4`."""
    fits = weight.layout == "int4" and weight.kind == "groups" and x.dtype == torch.bfloat16
    if not fits or len(x) > MOST_ROWS_OF_WHOLE_TILES or gpu.capability[0] != _HOPPER:
        return False
    return len(x) <= MOST_ROWS or tiles_of(len(x), weight.columns, gpu.num_multiprocessors)[0] > 0


def tiles_of(num_rows: int, columns: int, num_blocks: int) -> tuple[int, int, bool]:
    """Tiles of 256 outputs, which fill whole turns of all thread blocks, and how many there are with those of 128; or
    how many of 64."""
    rows, halves = -(-num_rows // _ROWS), -(-columns // _OUTPUTS)
    if rows * halves * 2 <= num_blocks:
        return 0, rows * -(-columns // (_OUTPUTS // 2)), True
    whole = halves * rows // 2 // num_blocks * num_blocks // rows * rows
    return whole, halves * rows - whole, False


def wide_int4(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, out: torch.Tensor, room: torch.Tensor,
    *, gpu: GPU,
) -> None:  # fmt: skip
    """out [T, out] = x [T, in] W^T + bias, all in bfloat16. room: of bfloat16, flat, for the rows."""
    num_rows, depth = x.shape
    dealt = room[: num_rows * depth].view(num_rows, depth)
    deal_inputs(x, dealt, chained=gpu.chains)
    whole, count, is_split = tiles_of(num_rows, weight.columns, gpu.num_multiprocessors)
    launch = _Launch(
        weight.data.data_ptr(), weight.scales.data_ptr(), address(weight.zeros), address(bias), out.data_ptr(),
        out.stride(0), num_rows, weight.columns, depth, weight.group.bit_length() - 1, whole, count, is_split,
    )  # fmt: skip
    rows = TensorMap.of_rows(dealt.data_ptr(), num_rows, depth, is_half=False, box_rows=_ROWS, box_dim=_BOX)
    kernel, shared_bytes = _kernel(Variant(weight.zeros is not None), gpu)
    kernel.launch(
        min(gpu.num_multiprocessors, count), _THREADS, (launch, rows), shared_bytes=shared_bytes,
        stream=torch.cuda.current_stream().cuda_stream, chained=gpu.chains,
    )  # fmt: skip
