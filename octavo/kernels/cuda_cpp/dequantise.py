"""Launches csrc/cuda/dequantise.cu: the numbers of a quantised weight, for a library's product of many rows."""

from __future__ import annotations

from ctypes import Structure, c_int, c_void_p
from dataclasses import dataclass
from functools import cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.module import Kernel
from octavo.kernels.cuda_cpp.quantized_format import Layout, Scales
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight, address, element

_FORMATS: dict[Layout, str] = {"int4": "kInt4", "int8": "kInt8", "fp8": "kFp8"}
_SCALES: dict[Scales, int] = {"outputs": 0, "groups": 1, "blocks": 2}
_THREADS, _PIECES, _TURNS = 256, 2, 4


class _Launch(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("codes", "scales", "zeros", "out")),
        *((name, c_int) for name in ("columns", "depth", "group_bits", "block_scales")),
    )


@dataclass(frozen=True, slots=True)
class Variant:
    """What the kernel is compiled for. dtype: of the numbers."""

    layout: Layout
    kind: Scales
    has_zeros: bool
    dtype: torch.dtype

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "ELEMENT": element(self.dtype),
            "FORMAT": _FORMATS[self.layout],
            "SCALES": _SCALES[self.kind],
            "HAS_ZEROS": int(self.has_zeros),
            "PIECES": _PIECES,
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("dequantise", macros, gpu.capability)


@cache
def _kernel(variant: Variant, gpu: GPU) -> Kernel:
    return Kernel(variant.compile(gpu), "octavo_dequantise")


def dequantise(weight: QuantizedWeight, out: torch.Tensor, *, gpu: GPU) -> None:
    """out [out, in], contiguous, in the 16-bit type that the weight was made for."""
    columns, depth = weight.columns, weight.depth
    if weight.layout == "int4":
        blocks = -(-(columns // 16 * -(-depth // (64 * _PIECES))) // (_THREADS // 32))
    else:
        blocks = -(-columns * depth // (_THREADS * _TURNS * 8))
    launch = _Launch(
        weight.data.data_ptr(), weight.scales.data_ptr(), address(weight.zeros), out.data_ptr(), columns, depth,
        max(0, weight.group.bit_length() - 1), weight.scales.shape[-1],
    )  # fmt: skip
    _kernel(Variant(weight.layout, weight.kind, weight.zeros is not None, out.dtype), gpu).launch(
        blocks, _THREADS, (launch,), shared_bytes=0, stream=torch.cuda.current_stream().cuda_stream,
        chained=gpu.chains,
    )  # fmt: skip
