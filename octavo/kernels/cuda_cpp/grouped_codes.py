"""Launches csrc/cuda/grouped_codes.cu: many rows times the experts that they chose, whose weights are codes.

Codes with scales become 16 bits on their way to Hopper's matrix units; for steps in which an expert has many rows, and
with narrow tiles for those in which it has few.
"""

from __future__ import annotations

from ctypes import Structure, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.sizes import padded_inputs
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.expert_format import BITS, FORMATS, GATES, LEAST_CODED_PAIRS
from octavo.kernels.cuda_cpp.module import Kernel, TensorMap
from octavo.kernels.cuda_cpp.quantized_weight import address, element
from octavo.kernels.mixture import Gate, GateKind
from octavo.kernels.scaled import Code
from octavo.kernels.triton.coded.weight_stack import WeightStack
from octavo.kernels.triton.experts.room import Room
from octavo.kernels.triton.linear.quantized import deal_spans

_THREADS, _BOX_ROWS, _STAGE = 384, 128, 128
#: matrices, and their biases
Biased = tuple[WeightStack, torch.Tensor | None]


class _Launch(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("counts", "order", "x", "scales", "zeros", "bias", "out")),
        *((name, c_int64) for name in ("x_stride", "out_stride")),
        *((name, c_int) for name in ("max_rows", "num_experts", "rows_of", "columns", "depth")),
        *((name, c_int) for name in ("group", "row_block", "num_matrix_rows")),
        *((name, c_float) for name in ("alpha", "limit")),
    )


@dataclass(frozen=True, slots=True)
class CodesTile:
    """pairs: at most, of an expert. blocks: of threads that share a multiprocessor."""

    pairs: int = 128
    blocks: int = 1


@dataclass(frozen=True, slots=True)
class CodesVariant:
    """What the kernel is compiled for."""

    dtype: torch.dtype
    code: Code
    has_zeros: bool
    has_short_scales: bool
    gate: GateKind | None
    tile: CodesTile

    @classmethod
    def of(cls, weight: WeightStack, dtype: torch.dtype, gate: Gate | None, tile: CodesTile) -> CodesVariant:
        assert weight.code is not None, "dense weights have a kernel of their own"
        return cls(
            dtype,
            weight.code,
            weight.zeros is not None,
            weight.has_short_scales(dtype),
            None if gate is None else gate.kind,
            tile,
        )

    def compile(self, gpu: GPU) -> bytes:
        macros: dict[str, str | int] = {
            "ELEMENT": element(self.dtype),
            "FORMAT": FORMATS[self.code],
            "HAS_ZEROS": int(self.has_zeros),
            "HAS_SHORT_SCALES": int(self.has_short_scales),
            "PAIRS": self.tile.pairs,
            "BLOCKS": self.tile.blocks,
            "GATE": -1 if self.gate is None else GATES[self.gate],
            "IS_CHAINED": int(gpu.chains),
        }
        return compile_kernel("grouped_codes", macros, gpu.capability)


NARROW, WIDE = CodesTile(16, 2), CodesTile(128, 1)
TILES = NARROW, WIDE
#: average length of an expert's list up to which narrow tiles are faster, as measured for these codes: those of a
#: prompt's rows are less even than of random ones
_MOST_NARROW: dict[Code, int] = {"U4": 8, "F8_E4M3": 6}


def tiles_of(code: Code) -> tuple[CodesTile, ...]:
    """Those that a matrix of these codes is multiplied by."""
    return TILES if code in _MOST_NARROW else (WIDE,)


def _tile_of(weight: WeightStack, num_pairs: int) -> CodesTile:
    most = 0 if weight.code is None else _MOST_NARROW.get(weight.code, 0)
    return NARROW if num_pairs <= most * weight.shape[0] else WIDE


@cache
def codes_kernel(variant: CodesVariant, gpu: GPU) -> tuple[Kernel, int]:
    """And the bytes of shared memory that it needs."""
    kernel = Kernel(variant.compile(gpu), "octavo_grouped_codes")
    return kernel, kernel.take_shared()


def takes_codes(gate_up: WeightStack, down: WeightStack, num_pairs: int, num_chosen: int) -> bool:
    """Whether to call `mixture_of_codes`."""
    num_experts, _, hidden = gate_up.shape
    codes = [each.code for each in (gate_up, down) if each.code is not None and not becomes_fp8(each)]
    has_room = padded_inputs(hidden) <= num_chosen * hidden
    if len(codes) < 2 or not has_room:
        return False
    return num_pairs >= max(LEAST_CODED_PAIRS[code] for code in codes) * num_experts


def becomes_fp8(weight: WeightStack) -> bool:
    """Whether many rows do that, and are multiplied by grouped_linear.cu."""
    return weight.code == "F8_E4M3" and weight.scales_outputs


def mixture_of_codes(
    x: torch.Tensor, gate_up: Biased, down: Biased, room: Room, results: torch.Tensor, *, gate: Gate, num_chosen: int,
    gpu: GPU,
) -> None:  # fmt: skip
    """Both products of a mixture, on the lists that `route` has left: x [T, in] -> results [pairs, in]."""
    num_rows, hidden = x.shape
    num_pairs, inner = num_rows * num_chosen, padded_inputs(down[0].shape[2])
    gated = room.gated[: num_pairs * inner].view(num_pairs, inner)
    dealt = room.results[: num_rows * padded_inputs(hidden)].view(num_rows, -1)  # the results come later
    deal_spans(x, dealt, chained=gpu.chains)
    first, second = (_tile_of(weight, num_pairs) for weight, _ in (gate_up, down))
    multiply_codes(dealt, *gate_up, gated, room, rows_of=num_chosen, gpu=gpu, gate=gate, tile=first)
    multiply_codes(gated, *down, results, room, rows_of=1, gpu=gpu, tile=second)


def multiply_codes(
    x: torch.Tensor, weight: WeightStack, bias: torch.Tensor | None, out: torch.Tensor, room: Room,
    *, rows_of: int, gpu: GPU, gate: Gate | None = None, tile: CodesTile = WIDE,
) -> None:  # fmt: skip
    """As `WideProducts.run`, of rows that `deal_spans` has dealt. With a gate the results are dealt, too."""
    num_experts, outputs, depth = weight.shape
    num_rows = num_experts * outputs
    assert x.shape[1] == padded_inputs(depth), f"rows of {x.shape[1]} times a weight of {depth} inputs"
    kernel, shared_bytes = codes_kernel(CodesVariant.of(weight, x.dtype, gate, tile), gpu)
    launch = _Launch(
        room.counts.data_ptr(), room.order.data_ptr(), x.data_ptr(), address(weight.scales), address(weight.zeros),
        address(bias), out.data_ptr(), x.stride(0), out.stride(0),
        room.max_rows, num_experts, rows_of, outputs if gate is None else outputs // 2, depth,
        weight.group or depth, weight.row_block, num_rows,
        0.0 if gate is None else gate.alpha, 0.0 if gate is None else gate.limit,
    )  # fmt: skip
    units = _map_of(weight.data.data_ptr(), num_rows, depth, BITS[weight.code])
    kernel.launch(
        gpu.num_multiprocessors * tile.blocks, _THREADS, (launch, units),
        shared_bytes=shared_bytes, stream=torch.cuda.current_stream().cuda_stream, chained=gpu.chains,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _map_of(start: int, num_rows: int, depth: int, bits: int) -> TensorMap:
    return TensorMap.of_units(
        start, num_rows, depth * bits // 8, box_rows=_BOX_ROWS, box_dim=_STAGE * bits // 8
    )  # fmt: skip
