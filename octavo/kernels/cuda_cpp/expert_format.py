"""Which mixtures csrc/cuda/experts.cu takes, for how many rows, and how its ring is cut.

    codes        scales
    none         16 bits a number
    F8_E4M3      of outputs, or of blocks whose inputs are multiples of 128
    I8           the same
    U4           of outputs, or of groups of 32 inputs or more, with zero points or without
    E2M1         of groups of 32

Plans of memory read this file where there is no GPU, so it imports neither torch nor triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp import compile as nvcc
from octavo.kernels.kv_layout import KVDType
from octavo.kernels.mixture import ExpertStack, GateKind, Mixture, Routing
from octavo.kernels.scaled import Code, ScaledFormat
from octavo.kernels.triton.coded import coded_format

FORMATS: dict[Code | None, str] = {None: "kDense", "F8_E4M3": "kFp8", "I8": "kInt8", "U4": "kInt4", "E2M1": "kFp4"}
#: as csrc/cuda/activate.cuh numbers them
GATES: dict[GateKind, int] = {"silu": 0, "clamped": 1, "gelu_tanh": 2, "gelu": 3, "relu": 4}
BITS: dict[Code | None, int] = {None: 16, "F8_E4M3": 8, "I8": 8, "U4": 4, "E2M1": 4}
#: rows up to which the kernels beat Triton's on an H200 (benchmarks/results/2026-11-30-quantised-gpu.md). With large
#: experts, each of which keeps all multiprocessors busy, Triton's are faster for dense weights, and for one row of
#: codes, but not of E2M1
MOST_ROWS: dict[Code | None, int] = {None: 8, "F8_E4M3": 32, "I8": 32, "U4": 32, "E2M1": 32}
#: average length of an expert's list from which tiles of 128 rows are faster than Triton's smaller ones; and, of codes
#: other than fp8 with scales of outputs, than both other kernels
LEAST_PAIRS = 49
LEAST_CODED_PAIRS: dict[Code, float] = {"U4": 0.5, "F8_E4M3": 0.5, "E2M1": 4, "I8": 8}
_LEAST_WIDE_ROWS = 8  # of a step that those kernels take from others in CUDA C++
_LARGE = 2048
COMPUTERS = 8  # warps
TILE_ROWS = (1, 8)  # of an expert, that are multiplied at once
_MOST_CHOSEN, _MOST_EXPERTS = 16, 512
_SPAN_BYTES, _SPAN_OUTPUTS = 128, 8
#: shared memory of a block: of the products of one row, which share a multiprocessor's, and of others
_FIRST_OF_ONE, _LEAST_OF_FIRST, _SECOND_OF_ONE, _ALONE = 120 << 10, 115 << 10, 104 << 10, 220 << 10
_HOPPER = (9, 0)


def why_not(layer: Mixture, dtype: KVDType, gpu: GPU, *, is_fixed: bool) -> str | None:
    """Why the kernels do not take a layer, or None."""
    routing = layer.routing
    if (reason := _why_not_here(dtype, gpu, is_fixed=is_fixed)) is not None:
        return reason
    if layer.slots is not None:
        return "experts may move between ranks"
    if routing.num_chosen > _MOST_CHOSEN or routing.num_experts > _MOST_EXPERTS:
        return f"{routing.num_chosen} of {routing.num_experts} experts; they take {_MOST_CHOSEN} of {_MOST_EXPERTS}"
    return _why_not_stack(layer.gate_up, 2) or _why_not_stack(layer.down, 1)


def _why_not_here(dtype: KVDType, gpu: GPU, *, is_fixed: bool) -> str | None:
    if is_fixed:
        return "sums must not depend on the other rows"
    if dtype == "float32":
        return "they compute in 16 bits"
    if gpu.is_interpreted or gpu.capability < _HOPPER:
        return "they need the copy engine of Hopper"
    return None if nvcc.find_nvcc() else "nvcc, which compiles them, is not here: pip install 'octavo[cuda]'"


def _why_not_stack(stack: ExpertStack, halves: int) -> str | None:
    return why_not_codes(coded_format.format_of(stack.parts), stack.out_features // halves, stack.in_features)


def why_not_codes(form: ScaledFormat | None, columns: int, depth: int) -> str | None:
    """The same of experts' matrices with so many outputs, or as many of the gate and of up. form: None if dense."""
    bits = BITS.get(None if form is None else form.code)
    if bits is None or (form is not None and _has_other_scales(form)):
        return f"experts of {'' if form is None else form.label}"
    if columns % _SPAN_OUTPUTS or depth % 64:
        return f"experts of {columns} x {depth}; they take multiples of {_SPAN_OUTPUTS} x 64"
    if form is not None and form.is_sorted:
        return f"experts of {form.label}; they take inputs in order"
    return None if form is None else _why_not_scales(form, depth, bits)


def _has_other_scales(form: ScaledFormat) -> bool:
    """As some of GGUF's blocks."""
    return coded_format.has_minimums(form) or coded_format.scale_bytes(form) == 2


def _why_not_scales(form: ScaledFormat, depth: int, bits: int) -> str | None:
    group = form.block[1] or depth
    if form.code == "E2M1":
        return None if form.block == (1, 32) else f"{form.label}; they take groups of 32"
    if group == depth and form.block[0] <= 1 and not form.has_zeros:
        return None
    if bits == 8 and (group % 128 or form.has_zeros):
        return f"{form.label}; of bytes they take groups of 128, without zero points"
    return None if bits == 8 or group in (32, 64, 128) or group % 256 == 0 else f"{form.label}; they take groups of 32"


def why_not_wide(layer: Mixture, dtype: KVDType, gpu: GPU, *, is_fixed: bool) -> str | None:
    """Why csrc/cuda/grouped_linear.cu, for codes grouped_codes.cu, does not take a layer, or None."""
    if (reason := _why_not_here(dtype, gpu, is_fixed=is_fixed)) is not None:
        return reason
    if gpu.capability[0] != _HOPPER[0]:
        return "they need the matrix units of Hopper"
    if layer.num_own > _MOST_EXPERTS:
        return f"{layer.num_own} experts; they take {_MOST_EXPERTS}"
    for stack, halves in ((layer.gate_up, 2), (layer.down, 1)):
        form, columns, depth = coded_format.format_of(stack.parts), stack.out_features // halves, stack.in_features
        if columns % 32 or depth % 16:
            return f"experts of {columns} x {depth}; they take multiples of 32 x 16"
        if form is not None and (reason := why_not_wide_codes(form, depth)) is not None:
            return reason
    return None


def why_not_wide_codes(form: ScaledFormat, depth: int) -> str | None:
    """The same of experts' matrices of so many inputs."""
    group = form.block[1] or depth
    if form.code == "F8_E4M3" and form.block[0] <= 1 and group == depth:
        return None
    if form.code not in FORMATS or _has_other_scales(form) or form.is_sorted:
        return f"experts of {form.label}"
    if depth % 32 or group % 32 or (form.has_zeros and form.code != "U4"):
        return f"{form.label} of {depth} inputs; they take groups of 32, and zero points of 4 bits"
    return None


def least_pairs(layer: Mixture) -> float:
    """Average length of an expert's list from which the kernels for many rows are faster than others."""
    forms = [coded_format.format_of(stack.parts) for stack in (layer.gate_up, layer.down)]
    codes = [form.code for form in forms if form is not None and not _becomes_fp8(form)]
    return LEAST_PAIRS if len(codes) < 2 else max(LEAST_CODED_PAIRS[code] for code in codes)


def _becomes_fp8(form: ScaledFormat) -> bool:
    """Whether rows do that."""
    return form.code == "F8_E4M3" and form.block[0] <= 1 and form.block[1] == 0


def rows_for(layer: Mixture, *, is_wide: bool) -> range:
    """The numbers of rows for which the kernels are faster than Triton's, and than those for many rows of each expert,
    if these take the layer (is_wide)."""
    forms = [coded_format.format_of(stack.parts) for stack in (layer.gate_up, layer.down)]
    codes = [None if form is None else form.code for form in forms]
    is_large = layer.down.in_features >= _LARGE
    least = 1 if not is_large or set(codes) == {"E2M1"} else 2
    if is_large and None in codes:
        return range(least, 1)
    most = min(MOST_ROWS[code] for code in codes)
    has_room = -(-layer.gate_up.in_features // 128) * 128 <= layer.routing.num_chosen * layer.gate_up.in_features
    if is_wide and None not in codes and has_room:  # as grouped_codes.py asks
        most = min(most, max(_LEAST_WIDE_ROWS, ceil(least_pairs(layer) * layer.num_own / layer.routing.num_chosen)) - 1)
    return range(least, most + 1)


def choice_macros(routing: Routing) -> tuple[int, bool]:
    """What the choice is compiled for: room for so many experts; whether groups of them are chosen first."""
    return max(32, 1 << (routing.num_experts - 1).bit_length()), routing.top_groups < routing.num_groups


def padded(num_inputs: int) -> int:
    """A row as the kernels read it ends with a whole span of any format."""
    return -(-num_inputs // 256) * 256


def tile_rows(num_rows: int) -> int:
    return next(rows for rows in TILE_ROWS if num_rows <= rows or rows == TILE_ROWS[-1])


@dataclass(frozen=True, slots=True)
class Ring:
    """spans: of 128 bytes of an output, in a stage; entries: stages; team: warps that share a stage."""

    spans: int
    entries: int
    team: int

    @classmethod
    def of(cls, bits: int, depth: int, rows: int, halves: int) -> Ring:
        """rows: of a tile. One row alone takes so little time that both products should share a multiprocessor. Two of
        the first must not, or some multiprocessors would have two and others none."""
        num_spans = -(-depth * bits // (8 * _SPAN_BYTES))
        most = (8 if halves == 2 else 12) // (2 if bits == 4 and (rows > 1 or halves == 2) else 1)
        spans = -(-num_spans // -(-num_spans // most))
        stage = spans * _SPAN_BYTES * _SPAN_OUTPUTS * halves + rows * (spans * 2048 // bits + 64) + 1024
        rest = (4 << 10) if rows == 1 else (26 << 10) + COMPUTERS * (1024 if halves == 2 else 2048)
        shared = _ALONE if rows > 1 else _FIRST_OF_ONE if halves == 2 else _SECOND_OF_ONE
        return cls(spans, min(32, (shared - rest) // stage), 1 if spans in (1, 3) else 2)

    def shared_bytes(self, rows: int, halves: int, needed: int) -> int:
        """What a block asks for."""
        return max(needed, _LEAST_OF_FIRST) if rows == 1 and halves == 2 else needed
