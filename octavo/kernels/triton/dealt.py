"""Dealt inputs: the order in which csrc/cuda/wide_codes.cu, whose threads have 8 neighbouring inputs of 32, reads rows.

place 8 c + 2 t + b of 32   <--   input 8 t + 2 c + b        t and c below 4, b below 2
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dealt(x, SIZE: tl.constexpr):
    """x [SIZE], inputs in their order -> in the order of their places."""
    parts = tl.reshape(x, [SIZE // 32, 4, 4, 2])
    return tl.reshape(tl.permute(parts, (0, 2, 1, 3)), [SIZE])
