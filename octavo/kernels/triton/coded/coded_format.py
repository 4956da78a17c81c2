"""Which matrices Triton's kernels multiply as they are stored, and what they take on the device.

Rows of codes in units of 32 inputs, each with its group's scale: see `weight_stack.py`. Plans of memory read this file
where there is no GPU, so it imports neither torch nor triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.kernels.mixture import ExpertStack
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.scaled import Code, ScaledFormat
from octavo.kernels.tensor import DType

UNIT = 32  # inputs that a kernel takes at a time: they share a scale
CODED: tuple[Code, ...] = ("F8_E4M3", "I8", "U4", "E2M1", "NF4", "IQ4_NL")


@dataclass(frozen=True, slots=True)
class BlockFormat(ScaledFormat):
    """A type of GGUF's blocks, as codes with scales; five and six bits take a byte. has_minimums: a number of each
    group is subtracted after scaling. has_halves: scales and minimums are float16, as in the file, not products."""

    dtype: str = ""
    has_minimums: bool = False
    has_halves: bool = False

    @property
    def label(self) -> str:
        return self.dtype


BLOCKS: dict[DType, BlockFormat] = {
    "Q4_0": BlockFormat("U4", (1, 32), dtype="Q4_0", has_halves=True),
    "Q4_1": BlockFormat("U4", (1, 32), dtype="Q4_1", has_minimums=True, has_halves=True),
    "Q5_0": BlockFormat("I8", (1, 32), dtype="Q5_0", has_halves=True),
    "Q5_1": BlockFormat("I8", (1, 32), dtype="Q5_1", has_minimums=True, has_halves=True),
    "Q8_0": BlockFormat("I8", (1, 32), dtype="Q8_0", has_halves=True),
    "Q4_K": BlockFormat("U4", (1, 32), dtype="Q4_K", has_minimums=True),
    "Q5_K": BlockFormat("I8", (1, 32), dtype="Q5_K", has_minimums=True),
    "Q6_K": BlockFormat("I8", (1, 16), dtype="Q6_K"),
    "IQ4_NL": BlockFormat("IQ4_NL", (1, 32), dtype="IQ4_NL", has_halves=True),
    "MXFP4": BlockFormat("E2M1", (1, 32), dtype="MXFP4"),
}
#: parts that are one below the other in one format
Piece = tuple[tuple[Parameter, ...], ScaledFormat]


def form_of(part: Parameter) -> ScaledFormat | None:
    return part.scheme.format or BLOCKS.get(part.sources[0].dtype)


def format_of(parts: Sequence[Parameter]) -> ScaledFormat | None:
    """The format in which experts' matrices, one below the other, are multiplied; None: they are made dense. A rank's
    part of sorted inputs has groups of any size."""
    form = form_of(parts[0])
    if form is None or any(form_of(part) != form or why_not(form, part.shape[-1]) for part in parts):
        return None
    return None if form.is_sorted and Linear(tuple(parts)).is_partial else form


def pieces_of(linear: Linear, *, is_fixed: bool) -> tuple[Piece, ...]:
    """A product in pieces of one format each; none: it is made dense. Each part sorts inputs in its own order, and a
    rank's part of them has groups of any size. A library takes fp8 in multiples of 16 outputs."""
    if is_fixed or linear.out_features % 16:
        return ()
    pieces: list[Piece] = []
    for part in linear.parts:
        form = form_of(part)
        if form is None or why_not(form, part.shape[-1]) or (form.is_sorted and linear.is_partial):
            return ()
        if pieces and pieces[-1][1] == form and not form.is_sorted:
            pieces[-1] = (*pieces[-1][0], part), form
        else:
            pieces.append(((part,), form))
    return tuple(pieces)


def why_not(form: ScaledFormat, depth: int) -> str | None:
    """Why the kernels do not take a matrix of so many inputs, or None."""
    if form.code not in CODED:
        return f"codes of {form.code}; they take {', '.join(CODED)}"
    if depth % UNIT:
        return f"{depth} inputs; they take multiples of {UNIT}"
    group = form.block[1]
    takes = group % UNIT == 0 or (group == 16 and form.code == "I8")
    return None if takes else f"groups of {group}; they take multiples of {UNIT}"


def has_minimums(form: ScaledFormat) -> bool:
    return isinstance(form, BlockFormat) and form.has_minimums


def scale_bytes(form: ScaledFormat) -> int:
    if form.code == "E2M1":
        return 1
    return 2 if isinstance(form, BlockFormat) and form.has_halves else 4


def row_block(form: ScaledFormat, parts: Sequence[tuple[int, ...]]) -> int:
    """How many outputs share a scale in matrices of these shapes, one below the other."""
    rows = form.block[0]
    return rows if rows > 1 and all(shape[-2] % rows == 0 for shape in parts) else 1


def held_bytes(form: ScaledFormat, parts: Sequence[tuple[int, ...]]) -> int:
    """What matrices of these shapes take on the device."""
    rows, depth = sum(shape[-2] for shape in parts), parts[0][-1]
    codes = rows * depth // (2 if form.is_nibbles else 1)
    scales = rows // row_block(form, parts) * -(-depth // (form.block[1] or depth))
    order = 4 * depth * len(parts) if form.is_sorted else 0
    return codes + scales * (scale_bytes(form) * (2 if has_minimums(form) else 1) + form.has_zeros) + order


def stack_bytes(form: ScaledFormat, stack: ExpertStack) -> int:
    return held_bytes(form, [part.shape for part in stack.parts])
