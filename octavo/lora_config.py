"""LoRAConfig: an engine's options for adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from octavo.checked_fields import checked, knob
from octavo.errors import ConfigError, InvalidRequestError
from octavo.lora_request import LoRARequest
from octavo.shown import shown

LoRADType = Literal["auto", "float32", "float16", "bfloat16"]

_MODULE_KEYS = ("name", "path", "base_model_name")


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAConfig:
    """LoRA adapters, which change the model for the requests that name them."""

    enable_lora: bool = knob(False, "compute requests with adapters; off: no step has an op for them")
    max_loras: int = knob(
        1, "slots on the device: how many adapters the sequences of a step may have", at_least=1, at_most=1024
    )
    max_lora_rank: int = knob(16, "the largest rank of an adapter; each slot has room for it", at_least=1, at_most=256)
    max_cpu_loras: int | None = knob(
        None, "adapters that each worker keeps in the host's memory, max_loras or more; default: max_loras", at_least=1
    )
    lora_dtype: LoRADType = knob(
        "auto", "the type that adapters' numbers are rounded to; auto: the one that the device computes in"
    )
    lora_modules: tuple[str, ...] = knob(
        (), 'adapters that are loaded at the start: NAME=PATH, or {"name": NAME, "path": PATH}'
    )
    lora_root: str | None = knob(
        None,
        "a folder: clients of a server may load and unload adapters that are in it, and no others; default: none may",
    )

    def __post_init__(self) -> None:
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise ConfigError(
                f"max_cpu_loras is {self.max_cpu_loras} and max_loras is {self.max_loras}: allowed are max_loras or "
                "more, as what is on the device is kept on the host, too"
            )
        for name in ("lora_modules", "lora_root"):
            if getattr(self, name) and not self.enable_lora:
                raise ConfigError(f"{name} is given, but enable_lora is False: set it to True, or leave {name} out")
        names = [module.lora_name for module in self.modules()]
        if len(set(names)) < len(names):
            raise ConfigError(f"lora_modules has two adapters of one name among {shown(names)}: rename one of them")

    @property
    def num_kept(self) -> int:
        return self.max_cpu_loras or self.max_loras

    def modules(self) -> Iterator[LoRARequest]:
        """The adapters to load at the start."""
        for number, text in enumerate(self.lora_modules, 1):
            try:
                yield LoRARequest(lora_int_id=number, **_module(text))
            except (InvalidRequestError, ValueError, RecursionError, TypeError) as error:
                raise ConfigError(
                    f'lora_modules holds {shown(text)}, allowed are NAME=PATH and {{"name": NAME, "path": PATH}}: '
                    f"{error}"
                ) from None


def _module(text: str) -> dict[str, Any]:
    """The keyword arguments of a LoRARequest."""
    if not text.lstrip().startswith("{"):
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ValueError("it has no path")
        return {"lora_name": name, "lora_path": path}
    values = json.loads(text)
    for key in values:
        if key not in _MODULE_KEYS:
            raise ValueError(f"it has the key {shown(key)}, allowed are {', '.join(_MODULE_KEYS)}")
    if not isinstance(path := values.get("path"), str) or not path:
        raise ValueError(f"its path is {shown(path)}")
    return {"lora_name": values.get("name"), "lora_path": path, "base_model_name": values.get("base_model_name")}
