"""Where the kernel tests run: on the GPU if there is one, else on the CPU under Triton's interpreter if
TRITON_INTERPRET=1 asks for it, else nowhere."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")

ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not (ON_GPU or INTERPRETED):
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 for the small cases", allow_module_level=True)

DEVICE = torch.device("cuda" if ON_GPU else "cpu")

needs_gpu = pytest.mark.skipif(not ON_GPU, reason="too slow under the interpreter")


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was expected; infinite if anything is not a number."""
    difference = (actual.double() - expected.double()).norm() / expected.double().norm()
    return float("inf") if difference.isnan() else float(difference)


#: what an op may lose: rounding its inputs' products and its output to the activation type
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
