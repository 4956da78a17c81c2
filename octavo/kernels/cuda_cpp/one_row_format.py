"""What csrc/cuda/one_row_experts.cu takes, what it is compiled for, and how it cuts its work.

It takes dense experts, and fp8 with a scale for each output, or for blocks of 128 x 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.expert_format import GATES, choice_macros
from octavo.kernels.cuda_cpp.quantized_weight import element
from octavo.kernels.mixture import GateKind
from octavo.kernels.triton.coded.weight_stack import WeightStack
from octavo.kernels.triton.experts.mixture import Experts

WARPGROUPS = 2
_SPAN_BYTES, _MOST_SPANS, OUTPUTS = 128, 8, 8  # of a stage: 8 outputs
_SMALL_HIDDEN = 2048
_BLOCK = 128  # outputs, and inputs, of a scale
#: that a block has on their way at once, of the first product
FLIGHT_BYTES = 80 << 10
_MOST_ROUTER_WORDS, _MOST_OUTS, _MOST_BLOCKS = 4, 32, 256


def shared_bytes(code: str | None, hidden: int) -> int:
    """Of a block. Beside one with fp8, one of fp8_linear.cu has room, which takes less with a small matrix. Dense
    weights take all they can."""
    if code is None:
        return 210 << 10
    return (122 if hidden <= _SMALL_HIDDEN else 111) << 10


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the kernel cuts its work. flight: entries of the ring that are on their way at once, for the first product;
    first, second: of the products, spans in a stage and stages of 8 outputs; steps: in which the threads go over the
    row; logits, outs: of a block, at most."""

    warpgroups: int
    entries: int
    flight: int
    first: tuple[int, int]
    second: tuple[int, int]
    steps: int
    logits: int
    outs: int

    @classmethod
    def of(cls, experts: Experts, gpu: GPU) -> Tiling | None:
        """None: it does not fit."""
        (_, hidden, inner), routing, blocks = experts.down.shape, experts.layer.routing, gpu.num_multiprocessors
        columns, span = (1, 64) if experts.down.code is None else (2, 128)
        first, second = _cut(hidden // span), _cut(inner // span)
        threads, warps = WARPGROUPS * 128, WARPGROUPS * 4
        steps, logits = -(-first[0] * first[1] * span // (threads * 8)), -(-routing.num_experts // blocks)
        outs = -(-hidden // (OUTPUTS * blocks))
        if steps * logits > _MOST_ROUTER_WORDS or outs > _MOST_OUTS or blocks > _MOST_BLOCKS:
            return None
        most_x = max(first[1], routing.num_chosen * second[1])
        rest = most_x * (columns * 1024 + 32 + outs * 32) + warps * (140 + 4 * logits)
        rest += routing.num_chosen * 16 + choice_macros(routing)[0] * 4
        stage = max(first[0], second[0]) * OUTPUTS * _SPAN_BYTES
        room = shared_bytes(experts.down.code, hidden) - rest - 2048
        entries = room // (stage + 16) // WARPGROUPS * WARPGROUPS
        entries = min(entries, 32)
        if entries < 2 * WARPGROUPS:
            return None
        flight = min(max(FLIGHT_BYTES // stage, 2 * WARPGROUPS), entries)
        return cls(WARPGROUPS, entries, flight, first, second, steps, logits, outs)


def _cut(num_spans: int) -> tuple[int, int]:
    stages = -(-num_spans // _MOST_SPANS)
    return -(-num_spans // stages), stages


@dataclass(frozen=True, slots=True)
class OneRowVariant:
    """What the kernel is compiled for. num_experts, is_grouped: see `choice_macros`."""

    dtype: torch.dtype
    is_fp8: bool
    has_blocks: bool  # of scales
    num_experts: int
    is_grouped: bool
    num_chosen: int
    tiling: Tiling
    gate: GateKind
    is_together: bool  # see csrc/cuda/one_row_choice.cuh

    @classmethod
    def of(cls, experts: Experts, dtype: torch.dtype, tiling: Tiling) -> OneRowVariant:
        routing, is_fp8 = experts.layer.routing, experts.down.code is not None
        num_experts, is_grouped = choice_macros(routing)
        has_other_bias = experts.bias is not None and routing.scoring != "sigmoid"
        return cls(
            dtype, is_fp8, _has_blocks(experts.down), num_experts, is_grouped, routing.num_chosen, tiling,
            experts.layer.gate.kind, not is_grouped and not has_other_bias and num_experts <= tiling.warpgroups * 128,
        )  # fmt: skip

    def compile(self, gpu: GPU) -> bytes:
        tiling = self.tiling
        macros: dict[str, str | int] = {
            "ELEMENT": element(self.dtype),
            "IS_FP8": int(self.is_fp8),
            "HAS_BLOCKS": int(self.has_blocks),
            "EXPERTS": self.num_experts,
            "IS_GROUPED": int(self.is_grouped),
            "IS_TOGETHER": int(self.is_together),
            "GATE": GATES[self.gate],
            "CHOSEN": self.num_chosen,
            "WARPGROUPS": tiling.warpgroups,
            "ENTRIES": tiling.entries,
            "FLIGHT": tiling.flight,
            "FIRST_SPANS": tiling.first[0],
            "FIRST_STAGES": tiling.first[1],
            "SECOND_SPANS": tiling.second[0],
            "SECOND_STAGES": tiling.second[1],
            "STEPS": tiling.steps,
            "OWN_LOGITS": tiling.logits,
            "OUTS": tiling.outs,
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("one_row_experts", macros, gpu.capability)


def takes(experts: Experts, gpu: GPU, dtype: torch.dtype) -> bool:
    codes, stacks = {experts.gate_up.code, experts.down.code}, (experts.gate_up, experts.down)
    if codes not in ({None}, {"F8_E4M3"}) or gpu.capability != (9, 0):
        return False
    is_fp8 = None not in codes
    if is_fp8 and dtype != torch.bfloat16:
        return False
    if is_fp8 and not any(all(map(kind, stacks)) for kind in (_scales_outputs, _has_blocks)):
        return False
    span = 128 if is_fp8 else 64
    return not any(stack.shape[2] % span for stack in stacks)


def _scales_outputs(stack: WeightStack) -> bool:
    return stack.scales_outputs


def _has_blocks(stack: WeightStack) -> bool:
    """Whether a scale is of 128 x 128 numbers."""
    return (stack.row_block, stack.group) == (_BLOCK, _BLOCK)
