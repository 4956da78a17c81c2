"""Launches csrc/cuda/fp8_linear.cu: a few bfloat16 rows times a weight of fp8 (`quantized_weight.py`), on Hopper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.few_rows import Launch
from octavo.kernels.cuda_cpp.module import Kernel, TensorMap
from octavo.kernels.cuda_cpp.quantized_format import most_shared, num_blocks, part_depth
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight
from octavo.kernels.ops import Activation

_TILE, _PIECE, _SPAN = 16, 512, 128  # outputs; inputs of a product's tile, and with one scale
_RING_BYTES = 64 << 10  # more only delay the rows, which come through the same memory
#: Of so much memory a multiprocessor has one thread block, beside one of attention. With two, another would have none.
#: A small matrix leaves room for a mixture of one row (one_row_format.py)
_ALONE_BYTES, _SMALL_ALONE_BYTES = 115 << 10, 104 << 10
_SMALL_MATRIX_BYTES = 12 << 20


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the kernel cuts its work. rows: for which it is compiled; warpgroups: that multiply; entries: pieces in the
    ring, of all tiles; batch: loads of a row that a thread has on their way at once."""

    rows: int
    warpgroups: int
    entries: int
    batch: int
    shared_bytes: int

    @classmethod
    def of(
        cls, columns: int, depth: int, num_rows: int, gpu: GPU, *, is_gated: bool, num_parts: int = 1
    ) -> Tiling | None:
        """columns: of the weight. num_parts: in which the inputs are cut. None: there are too many rows, or they do not
        fit into memory."""
        rows, tiles = 1 << (num_rows - 1).bit_length(), 2 if is_gated else 1
        if rows > 8:
            return None
        warpgroups = 2 if rows * tiles == 16 else 4  # as many sums as threads have registers for
        pieces, warps = -(-part_depth(depth, num_parts) // _PIECE), warpgroups * 4
        entries = _RING_BYTES // (tiles * _TILE * _PIECE)
        sums = 2 * warps * rows * tiles * _TILE * 4
        fixed = _RING_BYTES + entries * (tiles * 16 + 16) + sums + warps * 4 + 1024  # aligned
        shared_bytes = fixed + pieces * rows * (8 * _SPAN + 16)
        if shared_bytes > most_shared(gpu):
            return None
        batch = 2 if rows == 1 and pieces * _PIECE <= 2 * 8 * warpgroups * 128 else 4
        alone = _SMALL_ALONE_BYTES if columns * depth < _SMALL_MATRIX_BYTES else _ALONE_BYTES
        return cls(rows, warpgroups, entries, batch, max(shared_bytes, alone))


@dataclass(frozen=True, slots=True)
class Variant:
    """What the kernel is compiled for. rows, warpgroups, entries, batch: see `Tiling`."""

    has_blocks: bool
    is_gated: bool
    rows: int
    warpgroups: int
    entries: int
    batch: int

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "HAS_BLOCKS": int(self.has_blocks),
            "IS_GATED": int(self.is_gated),
            "ROWS": self.rows,
            "WARPGROUPS": self.warpgroups,
            "ENTRIES": self.entries,
            "BATCH": self.batch,
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("fp8_linear", macros, gpu.capability)


@cache
def _kernel(variant: Variant, gpu: GPU) -> Kernel:
    kernel = Kernel(variant.compile(gpu), "octavo_fp8_linear")
    kernel.allow_shared(most_shared(gpu))
    kernel.prefer_shared()
    return kernel


def takes(x: torch.Tensor, weight: QuantizedWeight, gpu: GPU, *, is_gated: bool, num_parts: int) -> bool:
    if weight.layout != "fp8" or x.dtype != torch.bfloat16 or gpu.capability != (9, 0):
        return False
    tiling = Tiling.of(weight.columns, x.shape[1], len(x), gpu, is_gated=is_gated, num_parts=num_parts)
    return tiling is not None


def fp8_linear(
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
    """As `quantized_linear`, of what it `takes`."""
    num_rows, depth = x.shape
    num_parts, is_gated = weight.num_parts(x, out, bias, norm_weight, residual, gate), gate is not None
    tiling = Tiling.of(weight.columns, depth, num_rows, gpu, is_gated=is_gated, num_parts=num_parts)
    assert tiling is not None, f"{num_rows} rows of {depth} inputs do not fit into shared memory"
    variant = Variant(weight.kind == "blocks", is_gated, tiling.rows, tiling.warpgroups, tiling.entries, tiling.batch)
    launch = Launch.of(
        x, weight, out, num_parts, bias=bias, norm_weight=norm_weight, eps=eps, residual=residual, gate=gate
    )
    blocks = num_blocks(launch.columns, num_parts, gpu)
    tensor_map = _map_of(weight.data.data_ptr(), 2 if is_gated else 1, launch.columns, depth)
    _kernel(variant, gpu).launch(
        blocks, tiling.warpgroups * 128 + 32, (launch, tensor_map), shared_bytes=tiling.shared_bytes,
        stream=torch.cuda.current_stream().cuda_stream, chained=gpu.chains,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _map_of(address: int, halves: int, columns: int, depth: int) -> TensorMap:
    shape = halves, columns, depth
    return TensorMap.of_stack(address, shape, box_rows=_TILE, box_spans=_PIECE // _SPAN, box_matrices=halves)
