"""A rank's process whose GPU is the CPU, under Triton's interpreter."""

from __future__ import annotations

import pytest

from octavo.executor import rank_process
from octavo.kernels.cuda.device import CudaDevice
from octavo.kernels.cuda.driver import GPU
from tests.gpu.quick_interpreter import quicken


def pretend(patch: pytest.MonkeyPatch) -> None:
    """A GPU of which any number of ranks have one each."""
    patch.setenv("TRITON_INTERPRET", "1")
    patch.setattr(CudaDevice, "gpu", GPU("interpreter", (8, 0), 1 << 34, 1))
    patch.setattr(CudaDevice, "why_not", lambda self: None)
    patch.setattr(CudaDevice, "device", "cpu")
    patch.setattr(CudaDevice, "collective_device", None)
    patch.setattr(CudaDevice, "free_bytes", lambda self, ledger, utilization: 1 << 20)


def main() -> None:
    pretend(pytest.MonkeyPatch())
    quicken()
    rank_process.main()
