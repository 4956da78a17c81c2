"""LoRARequest: the adapter that a request is computed with. vLLM's names and meanings."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import InvalidRequestError
from octavo.shown import shown

LONGEST_NAME = 256
_MOST_IDS = 1 << 31


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """lora_int_id: a number of its own, from 1 up. lora_path: a folder as PEFT saves it; empty: the adapter of this
    name that has been loaded before. load_inplace: load the folder again, if it was loaded before."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False

    def __post_init__(self) -> None:
        check_name("lora_name", self.lora_name)
        number = self.lora_int_id
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number < _MOST_IDS:
            raise InvalidRequestError(f"lora_int_id is {shown(number)}, allowed is a whole number from 1 up")
        if not isinstance(self.lora_path, str) or "\0" in self.lora_path:
            raise InvalidRequestError(f"lora_path is {shown(self.lora_path)}, allowed is the path of a folder")

    @property
    def adapter_id(self) -> int:
        return self.lora_int_id

    @property
    def name(self) -> str:
        return self.lora_name

    @property
    def path(self) -> str:
        return self.lora_path


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter that an engine has checked. key: its number in this engine; a folder that is loaded again gets another
    one. digest: of the folder's content."""

    key: int
    digest: str
    request: LoRARequest

    @property
    def name(self) -> str:
        return self.request.lora_name

    @property
    def path(self) -> str:
        return self.request.lora_path


def check_name(field: str, name: object) -> None:
    """Raise InvalidRequestError unless it can be the name of an adapter."""
    is_name = isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()
    if not is_name or not name.strip():  # type: ignore[attr-defined]  # it is text
        raise InvalidRequestError(
            f"{field} is {shown(name)}, allowed is a text of 1 to {LONGEST_NAME} printable characters"
        )


def check_lora(lora_request: object, *, is_enabled: bool) -> None:
    """Raise InvalidRequestError unless requests may have this adapter."""
    if not isinstance(lora_request, LoRARequest):
        raise InvalidRequestError(f"lora_request is {shown(lora_request)}, allowed are a LoRARequest and None")
    if not is_enabled:
        name = shown(lora_request.lora_name)
        raise InvalidRequestError(f"lora_request asks for adapter {name}, but enable_lora is False: set it to True")
