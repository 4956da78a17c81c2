"""CpuDevice: C++ kernels built for this processor's vector instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from octavo.config import ActivationDType
from octavo.kernels.build import build
from octavo.kernels.cpu import library
from octavo.kernels.cpu.compiled import CpuModel
from octavo.kernels.cpu.ledger import CpuLedger
from octavo.kernels.device import StepLimits
from octavo.kernels.host_device import HostDevice
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.kernels.ledger import Ledger
from octavo.kernels.model import Model
from octavo.kernels.program.model_recording import ModelRecording
from octavo.kernels.program.recorder import printer
from octavo.observe.machine import num_cores

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives


class CpuDevice(HostDevice):
    """Implements `octavo.kernels.device.Device`. num_threads None: every core this process may use, shared by the
    ranks. activation_dtype: the type that activations are rounded to in products with block-quantised weights, and with
    bfloat16 ones if it is that. traces_ops: see `kernels/program/recorder.py`."""

    name = "cpu"

    def __init__(
        self,
        num_threads: int | None = None,
        activation_dtype: ActivationDType = "int8",
        num_ranks: int = 1,
        *,
        traces_ops: bool = False,
    ) -> None:
        self.num_sharing = num_ranks
        self.num_threads = num_threads or max(1, num_cores() // num_ranks)
        self._see = printer(lambda x: float(np.linalg.norm(x))) if traces_ops else None
        self._activation_bytes = {"int8": 1, "int16": 2, "bfloat16": 3}[activation_dtype]

    def why_not(self) -> str | None:
        return build.why_not()

    @property
    def place(self) -> str:
        return f"the CPU ({self.num_threads} thread{'s' if self.num_threads > 1 else ''})"

    def ledger(self, model: ModelRecording, kv: KVLayout, limits: StepLimits, dtype: KVDType) -> Ledger:
        return CpuLedger(library.load(), self._activation_bytes, self.num_threads).of(model, kv, limits)

    def load(
        self, model: Model, kv: KVLayout, limits: StepLimits, dtype: KVDType, ranks: Collectives | None = None
    ) -> CpuModel:
        loaded = library.load()
        threads = library.ThreadPool(loaded, self.num_threads)
        return CpuModel(loaded, threads, model, kv, limits, self._activation_bytes, self._see, ranks)
