"""The gate of an expert: act(gate) * up, or the clamped one of gpt-oss."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.elementwise.elementwise import activate


@triton.jit
def gated(gate, up, alpha, limit, KIND: tl.constexpr):
    """In float32; see `Gate` in kernels/mixture.py."""
    if KIND == "clamped":
        gate = tl.minimum(gate, limit)
        up = tl.maximum(tl.minimum(up, limit), -limit)
        return gate * tl.sigmoid(alpha * gate) * (up + 1)
    else:
        return activate(gate, KIND) * up
