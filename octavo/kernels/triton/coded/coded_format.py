"""Which matrices Triton's kernels multiply as they are stored, and what they take on the device.

Rows of codes in units of 32 inputs, each with its group's scale: see `weight_stack.py`. Plans of memory read this file
where there is no GPU, so it imports neither torch nor triton.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.kernels.mixture import ExpertStack
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.scaled import Code, ScaledFormat

UNIT = 32  # inputs that a kernel takes at a time: they share a scale
CODED: tuple[Code, ...] = ("F8_E4M3", "I8", "U4", "E2M1", "NF4")


def format_of(parts: Sequence[Parameter]) -> ScaledFormat | None:
    """The format in which experts' matrices, one below the other, are multiplied; None: they are made dense."""
    form = _common(parts)
    return None if form is None or form.is_sorted else form


def product_format(linear: Linear, *, is_fixed: bool) -> ScaledFormat | None:
    """The same of a product. A library takes fp8 in multiples of 16 outputs. A rank's part of inputs that are sorted by
    importance has groups of any size."""
    form = None if is_fixed or linear.out_features % 16 else _common(linear.parts)
    return None if form is None or (form.is_sorted and linear.is_partial) else form


def _common(parts: Sequence[Parameter]) -> ScaledFormat | None:
    form = parts[0].scheme.format
    if form is None or any(part.scheme.format != form for part in parts):
        return None
    return None if any(why_not(form, part.shape[-1]) for part in parts) else form


def why_not(form: ScaledFormat, depth: int) -> str | None:
    """Why the kernels do not take a matrix of so many inputs, or None."""
    if form.code not in CODED:
        return f"codes of {form.code}; they take {', '.join(CODED)}"
    if depth % UNIT:
        return f"{depth} inputs; they take multiples of {UNIT}"
    group = form.block[1]
    return f"groups of {group}; they take multiples of {UNIT}" if group % UNIT else None


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
    return codes + scales * ((1 if form.code == "E2M1" else 4) + form.has_zeros) + order


def stack_bytes(form: ScaledFormat, stack: ExpertStack) -> int:
    return held_bytes(form, [part.shape for part in stack.parts])
