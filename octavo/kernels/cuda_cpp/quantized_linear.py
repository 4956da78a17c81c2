"""Launches csrc/cuda/quantized_linear.cu: a few rows times a weight of int8 or fp8 (`quantized_weight.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.few_rows import Launch
from octavo.kernels.cuda_cpp.fp8_linear import fp8_linear, takes
from octavo.kernels.cuda_cpp.int4_linear import int4_linear
from octavo.kernels.cuda_cpp.module import Kernel, TensorMap
from octavo.kernels.cuda_cpp.quantized_format import (
    COMPUTERS,
    ENTRIES,
    MAX_ROWS,
    ROW_GAP,
    Layout,
    Scales,
    most_shared,
    num_blocks,
    part_depth,
    row_tiles,
    stage_for,
)
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight, element
from octavo.kernels.ops import Activation

_LAYOUTS = {"int8": "kInt8", "fp8": "kFp8"}
_SCALES = {"outputs": "kOfOutputs", "groups": "kOfGroups", "blocks": "kOfBlocks"}


@dataclass(frozen=True, slots=True)
class Variant:
    """What the kernel is compiled for. row_tiles: of 8 rows; stage_bytes: of weights in an entry of the ring."""

    layout: Layout
    kind: Scales
    dtype: torch.dtype
    is_gated: bool
    row_tiles: int
    stage_bytes: int

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "ELEMENT": element(self.dtype),
            "FORMAT": _LAYOUTS[self.layout],
            "SCALES": _SCALES[self.kind],
            "IS_GATED": int(self.is_gated),
            "ROW_TILES": self.row_tiles,
            "STAGE_BYTES": self.stage_bytes,
            "ENTRIES": ENTRIES,
            "COMPUTERS": COMPUTERS,
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("quantized_linear", macros, gpu.capability)


@cache
def _kernel(variant: Variant, gpu: GPU) -> tuple[Kernel, int]:
    """And the bytes of shared memory that it needs beside the rows."""
    kernel = Kernel(variant.compile(gpu), "octavo_quantized_linear")
    kernel.allow_shared(most_shared(gpu))
    return kernel, kernel.number("octavo_shared_bytes")


def quantized_linear(
    x: torch.Tensor,
    weight: QuantizedWeight,
    out: torch.Tensor,
    *,
    gpu: GPU,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    residual: torch.Tensor | None = None,
    gate: Activation | None = None,
) -> None:
    """out [T, out] = x W^T + bias (+ residual), or with `gate` act(x Wg^T) * (x Wu^T) for W = [Wg; Wu]; up to MAX_ROWS
    rows. norm_weight: x is RMSNormed first. residual may be `out` itself; `out` must not be x. out [parts, T, out] in
    float32: sums over so many parts of the inputs, without bias, norm, residual or gate. int4 has its own kernel, and
    fp8 on Hopper."""
    num_rows, depth = x.shape
    num_parts = weight.num_parts(x, out, bias, norm_weight, residual, gate)
    own = int4_linear if weight.layout == "int4" else None
    if takes(x, weight, gpu, is_gated=gate is not None, num_parts=num_parts):
        own = fp8_linear
    if own is not None:
        own(x, weight, out, gpu=gpu, bias=bias, norm_weight=norm_weight, eps=eps, residual=residual, gate=gate)
        return
    assert num_rows <= MAX_ROWS, f"{num_rows} rows; the kernel takes {MAX_ROWS}"
    layout, kind, is_gated, own_depth = weight.layout, weight.kind, gate is not None, part_depth(depth, num_parts)
    stage_bytes = stage_for(kind, num_rows, own_depth, gpu, is_gated=is_gated)
    variant = Variant(layout, kind, x.dtype, is_gated, row_tiles(num_rows), stage_bytes)
    kernel, shared_bytes = _kernel(variant, gpu)
    launch = Launch.of(
        x, weight, out, num_parts, bias=bias, norm_weight=norm_weight, eps=eps, residual=residual, gate=gate
    )
    blocks = num_blocks(launch.columns, num_parts, gpu)
    tensor_map = _map_of(weight.data.data_ptr(), 2 if is_gated else 1, launch.columns, depth)
    shared_bytes += num_rows * (own_depth + ROW_GAP) * 2
    stream = torch.cuda.current_stream().cuda_stream
    kernel.launch(
        blocks, COMPUTERS * 32 + 32, (launch, tensor_map), shared_bytes=shared_bytes, stream=stream, chained=gpu.chains
    )


@lru_cache(maxsize=4096)
def _map_of(address: int, halves: int, columns: int, depth: int) -> TensorMap:
    return TensorMap.of_bytes(address, (halves, columns, depth), 16)
