"""What csrc/cuda/fp4_experts.cu is compiled for: one row times its experts in MXFP4."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.expert_format import choice_macros
from octavo.kernels.cuda_cpp.module import Kernel
from octavo.kernels.cuda_cpp.quantized_weight import element
from octavo.kernels.mixture import Routing
from octavo.kernels.triton.experts.mixture import Experts

_WARPS = 8
_SPAN_INPUTS, _SPAN_BYTES, _MOST_SPANS = 256, 2048, 3  # of a stage: of 8 outputs of two matrices
_MOST_OUTPUTS = 128  # of a block of the second product
#: shared memory of blocks that share a multiprocessor's, if they are of different products; what is not ring or rows
_FIRST, _LEAST_OF_FIRST, _SECOND, _REST = 120 << 10, 115 << 10, 104 << 10, 6 << 10
#: inputs of the second product from which the kernel is known to be faster than experts.cu
LEAST_INPUTS = 2048


def takes(experts: Experts, gpu: GPU) -> bool:
    """Whether the kernel multiplies one row by them; experts.cu takes them, too."""
    if (experts.gate_up.code, experts.down.code) != ("E2M1", "E2M1"):
        return False
    _, outputs, inputs = experts.down.shape
    if inputs < LEAST_INPUTS or outputs > _MOST_OUTPUTS * gpu.num_multiprocessors:
        return False
    return WarpRing.of(inputs, experts.layer.routing.num_chosen, is_down=True).entries > 0


@dataclass(frozen=True, slots=True)
class WarpRing:
    """team: warps that share a unit; spans: of a stage; stages: of a warp, for a unit; entries: stages that a warp's
    ring holds; 0: rows leave it no room."""

    team: int
    spans: int
    stages: int
    entries: int

    @classmethod
    def of(cls, depth: int, num_rows: int, *, is_down: bool) -> WarpRing:
        num_spans = -(-depth // _SPAN_INPUTS)
        team = min((4, 2, 1), key=lambda team: -(-num_spans // team) * team)
        own = -(-num_spans // team)
        rows = num_rows * own * team * (2 * _SPAN_INPUTS + 32)
        ring = ((_SECOND if is_down else _FIRST) - rows - _REST) // _WARPS
        fitting = (spans for spans in range(_MOST_SPANS, 1, -1) if own % spans == 0 and ring >= 2 * spans * _SPAN_BYTES)
        spans = next(fitting, 1)
        return cls(team, spans, own // spans, max(0, ring // (spans * _SPAN_BYTES)))


@dataclass(frozen=True, slots=True)
class Fp4Variant:
    """What a product is compiled for. num_experts, is_grouped: see `choice_macros`."""

    dtype: torch.dtype
    is_down: bool
    num_experts: int
    is_grouped: bool
    num_chosen: int
    ring: WarpRing

    @classmethod
    def of(cls, routing: Routing, depth: int, *, is_down: bool, dtype: torch.dtype) -> Fp4Variant:
        ring = WarpRing.of(depth, routing.num_chosen if is_down else 1, is_down=is_down)
        return cls(dtype, is_down, *choice_macros(routing), routing.num_chosen, ring)

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "ELEMENT": element(self.dtype),
            "IS_DOWN": int(self.is_down),
            "EXPERTS": self.num_experts,
            "IS_GROUPED": int(self.is_grouped),
            "CHOSEN": self.num_chosen,
            "WARPS": _WARPS,
            "TEAM": self.ring.team,
            "SPANS": self.ring.spans,
            "STAGES": self.ring.stages,
            "ENTRIES": self.ring.entries,
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("fp4_experts", macros, gpu.capability)

    @property
    def num_threads(self) -> int:
        return _WARPS * 32


@cache
def fp4_kernel(variant: Fp4Variant, gpu: GPU) -> tuple[Kernel, int]:
    """And the bytes of shared memory that it needs."""
    kernel = Kernel(variant.compile(gpu), "octavo_fp4_experts")
    needed = kernel.number("octavo_shared_bytes")
    # two of the first product must not share a multiprocessor, or some would have two and others none
    num_bytes = needed if variant.is_down else max(needed, _LEAST_OF_FIRST)
    kernel.allow_shared(num_bytes)
    kernel.prefer_shared()
    return kernel, num_bytes
