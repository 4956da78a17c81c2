"""How numbers become fp8 with a scale: parts of kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scale_of(largest):
    """Never 0 or subnormal: these a division may flush, and what is so small is nothing beside 2^-126."""
    return tl.where(largest > 0, tl.maximum(largest / 448.0, 1.1754943508222875e-38), 1.0)


@triton.jit
def codes_of(x, scale):
    """One division for all numbers that share a scale."""
    return tl.clamp(x * (1.0 / scale), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
