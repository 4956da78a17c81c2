"""AdapterStore: the adapters that a worker keeps in the host's memory, and puts into slots as plans say."""

from __future__ import annotations

from pathlib import Path

from octavo.errors import ModelLoadError
from octavo.kernels.adapters import AdapterTarget
from octavo.kernels.device import CompiledModel
from octavo.lora.folder import Adapter
from octavo.lora_config import LoRAConfig
from octavo.messages import AdapterLoad


class AdapterStore:
    """Keeps those that were placed last. targets: what they may change in the model."""

    def __init__(self, options: LoRAConfig, targets: tuple[AdapterTarget, ...], family: str) -> None:
        self._options, self._targets, self._family = options, targets, family
        self._kept: dict[int, Adapter] = {}  # by key, the last used last

    def place(self, load: AdapterLoad, model: CompiledModel) -> None:
        adapter = self._kept.pop(load.key, None) or self._read(load)
        self._kept[load.key] = adapter
        while len(self._kept) > self._options.num_kept:
            del self._kept[next(iter(self._kept))]
        model.place_adapter(load.slot, adapter)

    def _read(self, load: AdapterLoad) -> Adapter:
        options = self._options
        given = self._targets, self._family, options.max_lora_rank, options.lora_dtype
        adapter = Adapter.read(Path(load.path), *given)
        if adapter.digest != load.digest:
            raise ModelLoadError(f"{load.path} has changed since the adapter was loaded; load it again")
        return adapter
