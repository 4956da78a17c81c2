"""Places in a list of masses or numbers, as draws look for them: the first that holds, and the one where u falls."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_place(condition, index):
    """The lowest index where the condition holds; a large number if nowhere."""
    return tl.min(tl.where(condition, index, 0x7FFFFFFF), 0)


@triton.jit
def pick(mass, target, index):
    """In 1-D order, the first place whose cumulative mass exceeds target (if rounding leaves none, the last with any
    mass), and the mass before it."""
    mass = mass.to(tl.float64)
    cumulative = tl.cumsum(mass, 0)
    place = first_place(cumulative > target, index)
    last = tl.max(tl.where(mass > 0, index, -1), 0)
    place = tl.minimum(place, last)
    return place, tl.sum(tl.where(index < place, mass, 0.0), 0)
