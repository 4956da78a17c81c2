"""CpuBackend: C++ kernels for whatever vectors this processor has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.config import ActivationDType
from octavo.kernels.build import build
from octavo.kernels.cpu import library
from octavo.kernels.cpu.compiled import CpuModel
from octavo.kernels.ops import KVLayout, Model, StepLimits
from octavo.observe.machine import num_cores


class CpuBackend:
    """Implements `octavo.kernels.ops.Backend`. num_threads None: every core this process may use. activation_dtype:
    what products with block-quantised weights round activations to."""

    name = "cpu"

    def __init__(self, num_threads: int | None = None, activation_dtype: ActivationDType = "int8") -> None:
        self.num_threads = num_threads or num_cores()
        self._activation_bytes = 2 if activation_dtype == "int16" else 1

    def why_not(self) -> str | None:
        return build.why_not()

    def compile(self, model: Model, kv: KVLayout, pool: NDArray[np.uint8], limits: StepLimits) -> CpuModel:
        loaded = library.load()
        threads = library.ThreadPool(loaded, self.num_threads)
        return CpuModel(loaded, threads, model, kv, pool, limits, self._activation_bytes)
