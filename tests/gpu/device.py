"""The kernel tests' device: the GPU if there is one, else the CPU under Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

from octavo.kernels.cuda.device import CudaDevice
from octavo.kernels.cuda.driver import GPU
from tests.gpu.quick_interpreter import quicken

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported, and when a kernel is defined
pytest.importorskip("triton")
if not ON_GPU:
    quicken()

INTERPRETER = GPU("interpreter", (8, 0), 1 << 34, 1)
DEVICE = torch.device("cuda" if ON_GPU else "cpu")

needs_gpu = pytest.mark.skipif(not ON_GPU, reason="too slow under the interpreter")


def interpreted(patch: pytest.MonkeyPatch, free_bytes: int = 1 << 20) -> None:
    """Have devices take the interpreter for their GPU, if there is none."""
    if not ON_GPU:
        patch.setattr(CudaDevice, "gpu", INTERPRETER)
        patch.setattr(CudaDevice, "why_not", lambda self: None)
        patch.setattr(CudaDevice, "device", "cpu")
        patch.setattr(CudaDevice, "free_bytes", lambda self, ledger, utilization: free_bytes)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of the expected values; infinite if there is a NaN."""
    difference = (actual.double() - expected.double()).norm() / expected.double().norm()
    return float("inf") if difference.isnan() else float(difference)


#: the allowed error of an op, from rounding its inputs' products and its output to the activation type
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
