"""Launches csrc/cuda/grouped_linear.cu: many rows times the experts that they chose.

It takes dense weights, and fp8 with scales of outputs where the rows are fp8, too; other codes have a kernel of their
own (`grouped_codes.py`). On Hopper, for steps in which an expert has enough rows to fill the matrix units.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from ctypes import Structure, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.expert_format import GATES, LEAST_PAIRS
from octavo.kernels.cuda_cpp.grouped_codes import CodesVariant, becomes_fp8, codes_kernel, tiles_of
from octavo.kernels.cuda_cpp.module import Kernel, TensorMap
from octavo.kernels.cuda_cpp.quantized_weight import address, element
from octavo.kernels.mixture import Gate, GateKind
from octavo.kernels.triton.coded.weight_stack import WeightStack
from octavo.kernels.triton.experts.room import Room

Factors = tuple[WeightStack, torch.Tensor | None]  # and its bias
_THREADS = 384


class _Launch(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("counts", "order", "x", "row_scales", "scales", "bias", "out")),
        *((name, c_int64) for name in ("x_stride", "out_stride")),
        *((name, c_int) for name in ("max_rows", "num_experts", "rows_of", "columns", "depth")),
        *((name, c_float) for name in ("alpha", "limit")),
    )


@dataclass(frozen=True, slots=True)
class Variant:
    """is_fp8: rows and weights are multiplied as fp8."""

    dtype: torch.dtype
    is_fp8: bool
    gate: GateKind | None
    has_bias: bool

    def compile(self, gpu: GPU) -> bytes:
        name = element(self.dtype)
        macros: dict[str, str | int] = {
            "ELEMENT": name,
            "FACTOR": "Fp8" if self.is_fp8 else name,
            "GATE": -1 if self.gate is None else GATES[self.gate],
            "HAS_BIAS": int(self.has_bias),
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("grouped_linear", macros, gpu.capability)


@cache
def _kernel(variant: Variant, gpu: GPU) -> tuple[Kernel, int]:
    """And the bytes of shared memory that it needs."""
    kernel = Kernel(variant.compile(gpu), "octavo_grouped_linear")
    return kernel, kernel.take_shared()


@cache
def _prepare(kinds: frozenset[Variant | CodesVariant], gpu: GPU) -> None:
    """All at once; threads suffice, since each nvcc is a process."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda kind: kind.compile(gpu), kinds))
    for kind in kinds:
        if isinstance(kind, CodesVariant):
            codes_kernel(kind, gpu)
        else:
            _kernel(kind, gpu)


@dataclass(frozen=True, slots=True)
class WideProducts:
    """A layer's products, where an expert has enough rows to fill a tile."""

    gpu: GPU
    dtype: torch.dtype

    def prepare(self, gate_up: Factors, down: Factors, gate: Gate) -> None:
        """Compile and load the kernels, unless another layer's are the same."""
        kinds: set[Variant | CodesVariant] = set()
        for (weight, bias), own in ((gate_up, gate), (down, None)):
            is_fp8 = becomes_fp8(weight)
            if weight.code is None or is_fp8:
                kinds.add(Variant(self.dtype, is_fp8, None if own is None else own.kind, bias is not None))
            else:
                kinds.update(CodesVariant.of(weight, self.dtype, own, tile) for tile in tiles_of(weight.code))
        _prepare(frozenset(kinds), self.gpu)

    def takes(self, weight: WeightStack, num_pairs: int, row_scales: torch.Tensor | None) -> bool:
        """Whether to call `run` for a product that `grouped_linear` can also do."""
        return (weight.code is None or row_scales is not None) and num_pairs >= LEAST_PAIRS * weight.shape[0]

    def run(
        self, x: torch.Tensor, weight: WeightStack, bias: torch.Tensor | None, out: torch.Tensor, room: Room,
        *, rows_of: int, row_scales: torch.Tensor | None = None, gate: Gate | None = None,
    ) -> None:  # fmt: skip
        """As `grouped_linear`: out[pair] = x[pair // rows_of] times its expert's matrix, plus bias; or act(gate) * up,
        of two halves of the outputs."""
        num_experts, outputs, depth = weight.shape
        is_fp8 = row_scales is not None
        variant = Variant(self.dtype, is_fp8, None if gate is None else gate.kind, bias is not None)
        kernel, shared_bytes = _kernel(variant, self.gpu)
        launch = _Launch(
            room.counts.data_ptr(), room.order.data_ptr(), x.data_ptr(), address(row_scales), address(weight.scales),
            address(bias), out.data_ptr(), x.stride(0), out.stride(0),
            room.max_rows, num_experts, rows_of, outputs if gate is None else outputs // 2, depth,
            0.0 if gate is None else gate.alpha, 0.0 if gate is None else gate.limit,
        )  # fmt: skip
        tensor_map = _map_of(weight.data.data_ptr(), num_experts * outputs, depth * x.element_size())
        kernel.launch(
            self.gpu.num_multiprocessors, _THREADS, (launch, tensor_map), shared_bytes=shared_bytes,
            stream=int(torch.cuda.current_stream().cuda_stream), chained=self.gpu.chains,
        )  # fmt: skip


@lru_cache(maxsize=4096)
def _map_of(start: int, num_rows: int, row_bytes: int) -> TensorMap:
    return TensorMap.of_dealt(start, num_rows, row_bytes)
