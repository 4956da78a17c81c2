"""Launches csrc/cuda/dense_linear.cu: one row times a matrix of 16-bit numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel, find_nvcc
from octavo.kernels.cuda_cpp.few_rows import Launch
from octavo.kernels.cuda_cpp.module import Kernel
from octavo.kernels.cuda_cpp.quantized_format import ACTIVATIONS, most_shared
from octavo.kernels.cuda_cpp.quantized_weight import address, element
from octavo.kernels.ops import Activation

_CHUNK, _UNIT, _LEAST_ENTRIES = 512, 16, 3  # _CHUNK: inputs; _UNIT: outputs whose sums lie together
#: warps of a thread block, and chunks that the ring of each may hold. The smaller block leaves registers for one of
#: attention, so that either begins while the other runs. The larger one reads large matrices faster
_SMALL, _LARGE = (12, 12), (16, 8)
_LARGE_BYTES = 32 << 20
#: of a multiprocessor's shared memory, for a thread block. Beside it there is room for one of the next kernel, but not
#: for another of its own grid, since some would then have two and others none
_SHARE, _ALONE = 0.52, 0.51
#: bytes from which, and outputs up to which, it was measured to be faster than `skinny_linear`
_LEAST_BYTES, _MOST_OUTPUTS = 16 << 20, 32768


def takes(matrix: torch.Tensor, gpu: GPU, gate: Activation | None = None) -> bool:
    """Whether the kernel multiplies one row by the matrix [out, in], or [2 * out, in] with a gate."""
    if not gpu.chains or gpu.is_interpreted or find_nvcc() is None or matrix.dtype == torch.float32:
        return False
    columns, depth = len(matrix) // (1 if gate is None else 2), matrix.shape[1]
    is_measured = matrix.nbytes >= _LEAST_BYTES and columns <= _MOST_OUTPUTS
    return is_measured and depth % 8 == 0 and _Cut.of(columns, depth, gpu, gate).entries >= _LEAST_ENTRIES


@dataclass(frozen=True, slots=True)
class _Cut:
    """warps: of a thread block; entries: chunks in the ring of each; shared_bytes: of a thread block."""

    warps: int
    entries: int
    shared_bytes: int

    @classmethod
    def of(cls, columns: int, depth: int, gpu: GPU, gate: Activation | None) -> _Cut:
        row, tiles = -(-depth // _CHUNK) * _CHUNK * 4, 1 if gate is None else 2
        warps, most_entries = _LARGE if columns * tiles * depth * 2 >= _LARGE_BYTES else _SMALL
        units = -(-columns // (gpu.num_multiprocessors * _UNIT)) + 1
        rest = row + units * warps * _UNIT * tiles * 4 + 64
        entry, most = warps * _CHUNK * 2, most_shared(gpu)
        entries = min((int(most * _SHARE) - rest) // entry, most_entries)
        return cls(warps, entries, max(rest + entries * entry, int(most * _ALONE)))


@dataclass(frozen=True, slots=True)
class Variant:
    """What the kernel is compiled for. warps, entries: see `_Cut`."""

    dtype: torch.dtype
    is_gated: bool
    warps: int
    entries: int

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "ELEMENT": element(self.dtype),
            "IS_GATED": int(self.is_gated),
            "WARPS": self.warps,
            "ENTRIES": self.entries,
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("dense_linear", macros, gpu.capability)


@cache
def _kernel(variant: Variant, gpu: GPU) -> Kernel:
    kernel = Kernel(variant.compile(gpu), "octavo_dense_linear")
    kernel.allow_shared(most_shared(gpu))
    kernel.prefer_shared()
    return kernel


def dense_linear(
    x: torch.Tensor,
    matrix: torch.Tensor,
    out: torch.Tensor,
    *,
    gpu: GPU,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    residual: torch.Tensor | None = None,
    gate: Activation | None = None,
) -> None:
    """As `skinny_linear`, for one row, and a matrix that `takes` takes."""
    (num_rows, depth), columns = x.shape, out.shape[1]
    assert num_rows == 1, f"{num_rows} rows; the kernel takes one"
    cut = _Cut.of(columns, depth, gpu, gate)
    launch = Launch(
        x.data_ptr(), matrix.data_ptr(), None, None, address(bias), address(residual), out.data_ptr(),
        address(norm_weight), x.stride(0), 0 if residual is None else residual.stride(0), out.stride(0), 0,
        num_rows, columns, depth, 0, 0, ACTIVATIONS[gate], 1, depth, 1, eps,
    )  # fmt: skip
    _kernel(Variant(x.dtype, gate is not None, cut.warps, cut.entries), gpu).launch(
        gpu.num_multiprocessors, cut.warps * 32, (launch,), shared_bytes=cut.shared_bytes,
        stream=torch.cuda.current_stream().cuda_stream, chained=gpu.chains,
    )  # fmt: skip
