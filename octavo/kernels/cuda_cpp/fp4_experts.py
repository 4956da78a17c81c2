"""Launches csrc/cuda/fp4_experts.cu: one row's mixture of experts in MXFP4, with the norm before it.

    gate_up    norm, logits, choice, first product -> gated
    down       choice, second product, weighted sum, residual

The router is a part of the first product: its blocks tell all others the logits.
"""

from __future__ import annotations

from ctypes import Structure, c_float, c_void_p
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.expert_arguments import ProductArguments
from octavo.kernels.cuda_cpp.expert_format import GATES, choice_macros
from octavo.kernels.cuda_cpp.expert_routing import routing_arguments
from octavo.kernels.cuda_cpp.module import Kernel, TensorMap
from octavo.kernels.cuda_cpp.quantized_weight import address, element
from octavo.kernels.mixture import GateKind
from octavo.kernels.triton.experts.mixture import Experts
from octavo.kernels.triton.experts.room import Room

_WARPS, _TEAMS = 12, (1, 2, 3, 4, 6)
_SPAN_INPUTS, _STEP_BYTES, _MOST_SPANS = 256, 2048, 2  # a step: a span of 8 outputs of two matrices
_MOST_OUTS, _MOST_UNITS = 8, 32  # of a block of the second product, times 8 outputs; of a team
#: shared memory of blocks: each has room beside the other product's, the first beside one of dense_linear.py, too; what
#: is not ring or rows
_FIRST, _SECOND, _REST = 110 << 10, 104 << 10, 4 << 10
_COUNTS = 8, 12  # where of Room.posted, in bytes, the blocks of each product are counted
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
    """What a product is compiled for. num_experts, is_grouped: see `choice_macros`. is_quick: a warp's lanes have a
    score each, and experts are chosen by nothing else. steps: of the row, 8 inputs of each thread. own_logits: of a
    block, at most."""

    dtype: torch.dtype
    is_down: bool
    num_experts: int
    is_grouped: bool
    is_quick: bool
    num_chosen: int
    steps: int
    own_logits: int
    gate: GateKind
    ring: WarpRing

    @classmethod
    def of(cls, experts: Experts, gpu: GPU, *, is_down: bool, dtype: torch.dtype) -> Fp4Variant:
        layer, ring = experts.layer, WarpRing.of(experts, gpu, is_down=is_down)
        num_logits, depth = experts.router.shape
        room, is_grouped = choice_macros(layer.routing)
        is_quick = room <= 32 and not is_grouped and experts.bias is None
        steps, own_logits = -(-depth // (8 * 32 * ring.warps)), -(-num_logits // gpu.num_multiprocessors)
        return cls(
            dtype, is_down, room, is_grouped, is_quick, layer.routing.num_chosen, steps, own_logits, layer.gate.kind,
            ring,
        )  # fmt: skip

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "ELEMENT": element(self.dtype),
            "IS_DOWN": int(self.is_down),
            "EXPERTS": self.num_experts,
            "IS_GROUPED": int(self.is_grouped),
            "IS_QUICK": int(self.is_quick),
            "CHOSEN": self.num_chosen,
            "STEPS": self.steps,
            "OWN_LOGITS": self.own_logits,
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
    return kernel, kernel.take_shared()


class _Route(Structure):
    """csrc/cuda/fp4_kind.cuh."""

    _fields_ = (
        *((name, c_void_p) for name in ("weight", "norm", "logits", "posted", "count")),
        ("eps", c_float),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Fp4Experts:
    """A layer's mixture of one row. variants: of both products."""

    experts: Experts
    room: Room
    gpu: GPU
    variants: tuple[Fp4Variant, Fp4Variant]

    @classmethod
    def of(cls, experts: Experts, room: Room, gpu: GPU, dtype: torch.dtype) -> Fp4Experts | None:
        """None: the kernel does not take them."""
        if not takes(experts, gpu):
            return None
        first, second = (Fp4Variant.of(experts, gpu, is_down=is_down, dtype=dtype) for is_down in (False, True))
        return cls(experts, room, gpu, (first, second))

    def run(
        self, x: torch.Tensor, residual: torch.Tensor | None, out: torch.Tensor, *, norm: torch.Tensor | None,
        eps: float,
    ) -> None:  # fmt: skip
        """As `FewRowExperts.run`."""
        inner, chosen = self.experts.down.shape[2], self.experts.layer.routing.num_chosen
        gated = self.room.few_gated[: chosen * inner].view(chosen, inner)
        self._multiply(x, None, gated, norm, eps, is_down=False)
        self._multiply(gated, residual, out, norm, eps, is_down=True)

    def _multiply(
        self, x: torch.Tensor, residual: torch.Tensor | None, out: torch.Tensor, norm: torch.Tensor | None, eps: float,
        *, is_down: bool,
    ) -> None:  # fmt: skip
        one, halves, variant = self.experts, 1 if is_down else 2, self.variants[is_down]
        weight, bias = (one.down, one.down_bias) if is_down else (one.gate_up, one.gate_up_bias)
        gate, (own, outputs, depth) = one.layer.gate, weight.shape
        assert weight.scales is not None, "MXFP4 has scales"
        launch = ProductArguments(
            routing_arguments(one, self.room, 1), x.data_ptr(), weight.scales.data_ptr(), None, address(bias),
            address(residual), out.data_ptr(), x.stride(0), 0 if residual is None else residual.stride(0),
            out.stride(0), outputs // halves, depth, GATES[gate.kind], weight.group or depth, weight.scales.shape[1],
            weight.row_block, gate.alpha, gate.limit,
        )  # fmt: skip
        logits, _, count = self.room.posted_words(one.layer.routing.num_experts)
        route = _Route(
            one.router.data_ptr(), address(norm), self.room.logits.data_ptr(), logits, count + _COUNTS[is_down], eps
        )
        shape = own * halves, outputs // halves, depth // 2
        kernel, shared_bytes = fp4_kernel(variant, self.gpu)
        kernel.launch(
            self.gpu.num_multiprocessors, variant.num_threads,
            (launch, _map_of(weight.data.data_ptr(), shape, variant.ring.spans, halves), route),
            shared_bytes=shared_bytes, stream=torch.cuda.current_stream().cuda_stream, chained=self.gpu.chains,
        )  # fmt: skip


@lru_cache(maxsize=4096)
def _map_of(data: int, shape: tuple[int, int, int], spans: int, halves: int) -> TensorMap:
    return TensorMap.of_stack(data, shape, box_rows=8, box_spans=spans, box_matrices=halves)
