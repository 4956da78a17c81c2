"""CpuBackend: C++ kernels for whatever vectors this processor has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.kernels import build
from octavo.kernels.cpu import library
from octavo.kernels.cpu.compiled import CpuModel
from octavo.kernels.ops import KVLayout, Model, StepLimits
from octavo.observe.machine import num_cores


class CpuBackend:
    """Implements `octavo.kernels.ops.Backend`. num_threads None: every core this process may use."""

    name = "cpu"

    def __init__(self, num_threads: int | None = None) -> None:
        self.num_threads = num_threads or num_cores()

    def why_not(self) -> str | None:
        return build.why_not()

    def compile(self, model: Model, kv: KVLayout, pool: NDArray[np.uint8], limits: StepLimits) -> CpuModel:
        loaded = library.load()
        return CpuModel(loaded, library.ThreadPool(loaded, self.num_threads), model, kv, pool, limits)
