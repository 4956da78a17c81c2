"""AdapterBook: the adapters of an engine, by name.

    load       a folder is checked against the model, and its name is known from then on
    find       a request's adapter; one that brings a path is loaded with it
    unload     the name is free again; requests that have found the adapter keep it until they end

Workers read an adapter's numbers when a request needs them in a slot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from octavo.errors import InvalidRequestError, ModelLoadError
from octavo.kernels.adapters import AdapterTarget
from octavo.lora.folder import AdapterFiles, check_adapter
from octavo.lora_config import LoRAConfig
from octavo.lora_request import LoadedAdapter, LoRARequest
from octavo.shown import shown, shown_names

MOST_ADAPTERS = 10_000


class AdapterBook:
    """Owner of what is loaded."""

    def __init__(self, options: LoRAConfig, targets: Iterable[AdapterTarget], family: str) -> None:
        """Loads the adapters that the options name. Raises ModelLoadError if one does not fit."""
        self._options, self._targets, self._family = options, tuple(targets), family
        self._loaded: dict[str, LoadedAdapter] = {}
        self._last_key = 0
        for request in options.modules():
            self.load(request)

    @property
    def requests(self) -> list[LoRARequest]:
        """What is loaded, as it was asked for."""
        return [adapter.request for adapter in self._loaded.values()]

    def load(self, request: LoRARequest) -> LoadedAdapter:
        """Know an adapter from now on. One that is known already is only loaded again if load_inplace says so."""
        known = self._loaded.get(request.lora_name)
        if known is not None and not request.load_inplace:
            _check_same(known.request, request)
            return known
        self.check_new(request)
        return self.enter(request, self.read(request))

    def check_new(self, request: LoRARequest) -> None:
        """Raise InvalidRequestError if another adapter has the name or the number."""
        known = self._loaded.get(request.lora_name)
        if known is not None and not request.load_inplace:
            raise InvalidRequestError(
                f"adapter {shown(request.lora_name)} is loaded already: set load_inplace to load it again"
            )
        if not request.lora_path:
            raise unknown_adapter(request.lora_name, self._loaded)
        taken = next((one for one in self.requests if one.lora_int_id == request.lora_int_id), None)
        if taken is not None and taken.lora_name != request.lora_name:
            raise InvalidRequestError(
                f"lora_int_id {request.lora_int_id} is that of adapter {shown(taken.lora_name)}, and the request names "
                f"{shown(request.lora_name)}: give each adapter a number of its own"
            )
        if known is None and len(self._loaded) >= MOST_ADAPTERS:
            raise InvalidRequestError(f"{MOST_ADAPTERS:,} adapters are loaded, allowed are no more: unload some")

    def read(self, request: LoRARequest) -> AdapterFiles:
        """Read and check a folder. Any thread may call it. Raises ModelLoadError."""
        return check_adapter(Path(request.lora_path), self._targets, self._family, self._options.max_lora_rank)

    def enter(self, request: LoRARequest, files: AdapterFiles) -> LoadedAdapter:
        """Know an adapter that has been read; one whose folder has not changed is what it was."""
        known = self._loaded.get(request.lora_name)
        if known is not None and known.digest == files.digest:
            key = known.key
        else:
            key = self._last_key = self._last_key + 1
        loaded = self._loaded[request.lora_name] = LoadedAdapter(key, files.digest, request)
        return loaded

    def change(self, load: LoRARequest | None, unload: int | None) -> list[LoRARequest]:
        """As `Core.change_adapters`."""
        if unload is not None and not self.unload(unload):
            raise InvalidRequestError(f"no adapter has the lora_int_id {unload}")
        if load is not None:
            self.find(load)
        return self.requests

    def find(self, request: LoRARequest) -> LoadedAdapter:
        """The adapter that a request asks for. Raises InvalidRequestError."""
        try:
            return self.load(request)
        except ModelLoadError as error:
            raise InvalidRequestError(f"adapter {shown(request.lora_name)} cannot be loaded: {error}") from None

    def unload(self, number: int) -> bool:
        """By its lora_int_id. False: there is none."""
        name = next((one.lora_name for one in self.requests if one.lora_int_id == number), None)
        return name is not None and self._loaded.pop(name) is not None


def unknown_adapter(name: str, known: Collection[str]) -> InvalidRequestError:
    loaded = f"loaded are {shown_names(list(known))}" if known else "none is loaded"
    return InvalidRequestError(f"there is no adapter {shown(name)}; {loaded}")


def _check_same(known: LoRARequest, asked: LoRARequest) -> None:
    """A request by name alone brings no path, and may not know the number."""
    if not asked.lora_path or (known.lora_path, known.lora_int_id) == (asked.lora_path, asked.lora_int_id):
        return
    raise InvalidRequestError(
        f"adapter {shown(known.lora_name)} is loaded from {known.lora_path} as number {known.lora_int_id}, and the "
        f"request has {asked.lora_path} and {asked.lora_int_id}: take another name, or set load_inplace"
    )
