"""What csrc/cuda/fp4_experts.cu is compiled for: one row times its experts in MXFP4."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.expert_format import GATES, choice_macros
from octavo.kernels.cuda_cpp.module import Kernel
from octavo.kernels.cuda_cpp.quantized_weight import element
from octavo.kernels.mixture import GateKind
from octavo.kernels.triton.experts.mixture import Experts

_WARPS, _TEAMS = 12, (1, 2, 3, 4, 6)
_SPAN_INPUTS, _STEP_BYTES, _MOST_SPANS = 256, 2048, 2  # a step: a span of 8 outputs of two matrices
_MOST_OUTS, _MOST_UNITS = 8, 32  # of a block of the second product, times 8 outputs; of a team
#: shared memory of blocks that share a multiprocessor's, if they are of different products; what is not ring or rows
_FIRST, _LEAST_OF_FIRST, _SECOND, _REST = 120 << 10, 115 << 10, 104 << 10, 4 << 10
#: inputs of the second product from which the kernel is known to be faster than experts.cu
LEAST_INPUTS = 2048


def takes(experts: Experts, gpu: GPU) -> bool:
    """Whether the kernel multiplies one row by them; experts.cu takes them, too."""
    if (experts.gate_up.code, experts.down.code) != ("E2M1", "E2M1"):
        return False
    _, outputs, inputs = experts.down.shape
    if inputs < LEAST_INPUTS or outputs > 8 * _MOST_OUTS * gpu.num_multiprocessors:
        return False
    rings = (WarpRing.of(experts, gpu, is_down=is_down) for is_down in (False, True))
    return all(ring.entries > 0 and ring.units <= _MOST_UNITS for ring in rings)


@dataclass(frozen=True, slots=True)
class WarpRing:
    """How a block's units are dealt to its warps. team: warps that share a unit; spans: of a stage; stages: of a warp,
    for a unit; entries: stages that a warp's ring holds, 0 if the rows leave it no room; units: at most, of a team."""

    team: int
    spans: int
    stages: int
    entries: int
    units: int
    warps: int

    @classmethod
    def of(cls, experts: Experts, gpu: GPU, *, is_down: bool) -> WarpRing:
        warps, chosen = _WARPS, experts.layer.routing.num_chosen
        outputs, depth = (experts.down if is_down else experts.gate_up).shape[1:]
        outs, pairs = outputs // 8 if is_down else outputs // 16 * chosen, -(-chosen // 2) if is_down else 1
        units, num_spans = -(-outs // gpu.num_multiprocessors) * pairs, -(-depth // _SPAN_INPUTS)

        def dealt(team: int) -> tuple[int, int]:
            return -(-units // (warps // team)), -(-num_spans // team)

        team = min(_TEAMS, key=lambda team: prod(dealt(team)))
        own_units, steps = dealt(team)
        rows = (chosen if is_down else 1) * steps * team * (2 * _SPAN_INPUTS + 32)
        ring = ((_SECOND if is_down else _FIRST) - rows - _REST) // warps
        spans = _MOST_SPANS if steps % _MOST_SPANS == 0 and ring >= 2 * _MOST_SPANS * _STEP_BYTES else 1
        return cls(team, spans, steps // spans, max(0, ring // (spans * _STEP_BYTES)), own_units, warps)


@dataclass(frozen=True, slots=True)
class Fp4Variant:
    """What a product is compiled for. num_experts, is_grouped: see `choice_macros`."""

    dtype: torch.dtype
    is_down: bool
    num_experts: int
    is_grouped: bool
    num_chosen: int
    gate: GateKind
    ring: WarpRing

    @classmethod
    def of(cls, experts: Experts, gpu: GPU, *, is_down: bool, dtype: torch.dtype) -> Fp4Variant:
        layer, ring = experts.layer, WarpRing.of(experts, gpu, is_down=is_down)
        return cls(dtype, is_down, *choice_macros(layer.routing), layer.routing.num_chosen, layer.gate.kind, ring)

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "ELEMENT": element(self.dtype),
            "IS_DOWN": int(self.is_down),
            "EXPERTS": self.num_experts,
            "IS_GROUPED": int(self.is_grouped),
            "CHOSEN": self.num_chosen,
            "GATE": GATES[self.gate],
            "WARPS": self.ring.warps,
            "TEAM": self.ring.team,
            "SPANS": self.ring.spans,
            "STAGES": self.ring.stages,
            "ENTRIES": self.ring.entries,
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("fp4_experts", macros, gpu.capability)

    @property
    def num_threads(self) -> int:
        return self.ring.warps * 32


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
