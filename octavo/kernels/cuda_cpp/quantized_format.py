"""Which matrices csrc/cuda/quantized_linear.cu, for int4 int4_linear.cu, takes as they are, and what these take there.

On Hopper up to 8 rows of bfloat16 times fp8 have a third kernel, if they fit into its memory (`fp8_linear.py`).

    layout   codes        scales
    fp8      F8_E4M3      of outputs, or of blocks of 128 x 128
    int8     I8           of outputs, or of groups of inputs
    int4     U4           of outputs, or of groups of inputs, with zero points or without

Plans of memory read this file where there is no GPU, so it imports neither torch nor triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp import compile as nvcc
from octavo.kernels.kv_layout import KVDType
from octavo.kernels.ops import Activation
from octavo.kernels.parameters import Linear
from octavo.kernels.scaled import ScaledFormat

Layout = Literal["fp8", "int8", "int4"]
Scales = Literal["outputs", "groups", "blocks"]

LAYOUTS: dict[str, Layout] = {"F8_E4M3": "fp8", "I8": "int8", "U4": "int4"}
_GROUPS = (64, 128, 256, 512)
_HOPPER = 9
_TILE, _PIECE = 16, 128  # outputs and inputs that the kernel takes at a time
MAX_ROWS, COMPUTERS, ENTRIES, ROW_GAP = 16, 16, 4, 32
ACTIVATIONS: Mapping[Activation | None, int] = {None: 0, "silu": 1, "gelu_tanh": 2, "gelu": 3, "relu": 4}
#: of which int4_linear.cu, or quantized_linear.cu, multiplies codes faster than wide_codes.cu
FEW_CODE_ROWS: dict[Layout, int] = {"int4": 8, "int8": 2, "fp8": 8}
#: rows up to which wide_codes.cu is faster than cuBLAS times a matrix that is made dense first, or by rows that are fp8
MOST_WIDE_ROWS, MOST_WIDE_OF_FP8 = 3072, 64
LARGEST_WIDE_TILE = 256 * 128  # sums, of wide_codes.cu
_LARGEST_STAGE = 2048  # inputs
_STAGE_BYTES = 16 << 10  # of weights, in an entry of the ring
#: for each byte of weights, with scales, and rounded up
_ENTRY_BYTES: dict[Scales, float] = {"outputs": 1, "blocks": 17 / 16, "groups": 18 / 16}
_MOST_SHARED = {(8, 0): 163 << 10, (8, 7): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10, (10, 3): 227 << 10}


def scales_of(form: ScaledFormat) -> Scales:
    if form.block in ((0, 0), (1, 0)):
        return "outputs"
    return "blocks" if form.block[0] > 1 else "groups"


def format_of(linear: Linear, dtype: KVDType, gpu: GPU, *, is_fixed: bool) -> ScaledFormat | None:
    """The format in which the kernel multiplies such a product; None: its matrices are made dense."""
    form = linear.parts[0].scheme.format
    return None if form is None or form.is_sorted else _format_of(form, linear, dtype, gpu, is_fixed=is_fixed)


def sorted_format_of(linear: Linear, dtype: KVDType, gpu: GPU, *, is_fixed: bool) -> ScaledFormat | None:
    """The same of matrices whose inputs are sorted; these are gathered first. A rank's part of them has groups of any
    size."""
    form = linear.parts[0].scheme.format
    if form is None or not form.is_sorted or linear.is_partial:
        return None
    return _format_of(form, linear, dtype, gpu, is_fixed=is_fixed)


def _format_of(form: ScaledFormat, linear: Linear, dtype: KVDType, gpu: GPU, *, is_fixed: bool) -> ScaledFormat | None:
    if any(part.scheme.format != form for part in linear.parts):
        return None
    if dtype == "float32" or is_fixed or gpu.is_interpreted or nvcc.find_nvcc() is None:
        return None
    plain = replace(form, is_sorted=False)
    return None if any(why_not(plain, *part.shape) for part in linear.parts) else form


def most_few_code_rows(form: ScaledFormat, dtype: str, gpu: GPU) -> int:
    """Rows up to which the kernels for few multiply such a matrix, if shared memory holds them."""
    return FEW_CODE_ROWS[LAYOUTS[form.code]] if multiplies_wide(form, dtype, gpu) else MAX_ROWS


def multiplies_wide(form: ScaledFormat, dtype: str, gpu: GPU) -> bool:
    """Whether csrc/cuda/wide_codes.cu multiplies many rows by such a matrix."""
    if form.code not in LAYOUTS or dtype == "float32" or gpu.capability[0] != _HOPPER:
        return False
    return form.code != "F8_E4M3" or (scales_of(form) == "blocks" and dtype == "bfloat16")


def why_not(form: ScaledFormat, columns: int, depth: int) -> str | None:
    """Why the kernel does not take a matrix, or None."""
    if form.code not in LAYOUTS:
        return f"codes of {form.code}; it takes {', '.join(LAYOUTS)}"
    if columns % _TILE or depth % _PIECE:
        return f"{columns} x {depth}; it takes multiples of {_TILE} x {_PIECE}"
    if form.is_sorted:
        return "inputs that are sorted by importance; it takes them in order"
    rows, group = form.block
    if scales_of(form) == "outputs":
        return "a zero point for each output" if form.has_zeros else None
    if form.code == "F8_E4M3":
        fits = form.block == (128, 128) and columns % 128 == 0
        return None if fits else f"fp8 {form.label}; it takes a scale per tensor, per output or per 128x128"
    if rows != 1 or group not in _GROUPS or depth % group:
        return f"{form.label}; it takes groups of {', '.join(map(str, _GROUPS))}"
    return "a zero point for groups of int8" if form.code == "I8" and form.has_zeros else None


def row_tiles(num_rows: int) -> int:
    """Tiles of 8 rows, a power of two."""
    return 1 << (-(-num_rows // 8) - 1).bit_length()


def most_shared(gpu: GPU) -> int:
    """Bytes of shared memory that a thread block may have."""
    return _MOST_SHARED.get(gpu.capability, 99 << 10)


def part_depth(depth: int, num_parts: int) -> int:
    """The inputs of a part, in whole stages."""
    return depth if num_parts == 1 else -(-depth // (num_parts * _LARGEST_STAGE)) * _LARGEST_STAGE


def num_blocks(columns: int, num_parts: int, gpu: GPU) -> int:
    """Thread blocks of a persistent grid: one a multiprocessor, but no more than there are tiles of 16 outputs, in
    each of so many parts of the inputs."""
    return min(columns // 16, max(1, gpu.num_multiprocessors // num_parts)) * num_parts


def fits(kind: Scales, num_rows: int, depth: int, gpu: GPU, *, is_gated: bool = False) -> bool:
    """Whether the kernel for int8 and fp8 takes so many rows of so many inputs at once."""
    return num_rows <= MAX_ROWS and _shared_bytes(_STAGE_BYTES, kind, num_rows, depth, is_gated) <= most_shared(gpu)


def stage_for(kind: Scales, num_rows: int, depth: int, gpu: GPU, *, is_gated: bool) -> int:
    """Bytes of a stage. Rows are read in longer runs if they fit."""
    fits_twice = _shared_bytes(2 * _STAGE_BYTES, kind, num_rows, depth, is_gated) <= most_shared(gpu)
    return 2 * _STAGE_BYTES if fits_twice else _STAGE_BYTES


def _shared_bytes(stage_bytes: int, kind: Scales, num_rows: int, depth: int, is_gated: bool) -> int:
    sums = 2 * 4 * COMPUTERS * row_tiles(num_rows) * 8 * (32 if is_gated else 16)
    return int(ENTRIES * stage_bytes * _ENTRY_BYTES[kind]) + sums + num_rows * (depth + ROW_GAP) * 2 + 4096


def held_bytes(form: ScaledFormat, columns: int, depth: int, num_parts: int = 1) -> int:
    """What a matrix of so many parts takes on the device."""
    codes = columns * depth // (2 if form.is_nibbles else 1) + (8 * depth * num_parts if form.is_sorted else 0)
    kind = scales_of(form)
    if kind == "outputs":
        return codes + 4 * columns
    if kind == "blocks":
        return codes + 4 * columns // 128 * -(-depth // 512) * 4
    return codes + columns * (depth // form.block[1]) * (6 if form.has_zeros else 4)
