"""AdapterNames: the adapters of an engine, as far as this front end has heard of them."""

from __future__ import annotations

from octavo.engine.llm_engine import EngineClient
from octavo.lora_request import LoRARequest


class AdapterNames:
    """The engine knows what is loaded: it is asked for a name that is new here, and refuses one that is unloaded."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._known: dict[str, LoRARequest] = {}

    async def find(self, name: str) -> LoRARequest | None:
        if name not in self._known:
            await self.listed()
        return self._known.get(name)

    async def listed(self) -> list[LoRARequest]:
        """Those that are loaded now."""
        if self._client.model_info.enable_lora:
            self._known = {one.lora_name: one for one in await self._client.adapters()}
        return list(self._known.values())
