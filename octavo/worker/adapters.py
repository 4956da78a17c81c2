"""AdapterStore: the adapters that a worker has read, ready to be put into slots as plans say.

    read      a thread reads a folder, converts its numbers into the form that slots have, and keeps them
    place     a step copies them into a slot

So no step waits for a file. The engine says what is read and dropped, so all ranks keep the same.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from octavo.errors import ModelLoadError, reason_of
from octavo.kernels.adapters import AdapterSource, AdapterTarget
from octavo.kernels.device import CompiledModel
from octavo.lora.folder import Adapter
from octavo.lora_config import LoRAConfig
from octavo.messages import AdapterLoad, AdapterRead


class AdapterStore:
    """Owner of the thread. targets: what adapters may change in the model. prepare: see `CompiledModel`."""

    def __init__(
        self,
        options: LoRAConfig,
        targets: tuple[AdapterTarget, ...],
        family: str,
        prepare: Callable[[AdapterSource], Any],
        *,
        is_stage: bool = False,
    ) -> None:
        """is_stage: the model is a stage of a pipeline."""
        self._is_stage = is_stage
        self._options, self._targets, self._family, self._prepare = options, targets, family, prepare
        self._kept: dict[int, Any] = {}  # by key
        self._reading: dict[int, Future[Any]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-adapters")

    def read(self, read: AdapterRead) -> None:
        for key in read.dropped:
            self._kept.pop(key, None)
        self._reading[read.key] = self._thread.submit(self._prepared, read)

    def take_read(self, seconds: float) -> dict[int, str]:
        """As `Executor.adapters_read`."""
        wait(self._reading.values(), seconds, FIRST_COMPLETED)
        done = {key: future for key, future in self._reading.items() if future.done()}
        faults = {}
        for key, future in done.items():
            del self._reading[key]
            fault = future.exception()
            faults[key] = "" if fault is None else reason_of(fault)
            if fault is None:
                self._kept[key] = future.result()
        return faults

    def place(self, load: AdapterLoad, model: CompiledModel) -> None:
        model.place_adapter(load.slot, self._kept[load.key])

    def close(self) -> None:
        """Let go of the model, and of what is kept."""
        self._thread.shutdown(cancel_futures=True)
        del self._prepare
        self._kept.clear()
        self._reading.clear()

    def _prepared(self, read: AdapterRead) -> Any:
        """On the thread."""
        options = self._options
        given = self._targets, self._family, options.max_lora_rank, options.lora_dtype
        adapter = Adapter.read(Path(read.path), *given, is_part=self._is_stage)
        if adapter.digest != read.digest:
            raise ModelLoadError(f"{read.path} has changed since the adapter was loaded; load it again")
        return self._prepare(adapter)
