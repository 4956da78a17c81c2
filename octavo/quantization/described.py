"""What a quantization_config says: its checked keys, and which scheme it gives each matrix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.parameters import Scheme, Shape
from octavo.shown import shown

#: types of KV blocks that a checkpoint may have scales for
KVCodes = Literal["fp8", "int8"]


class Quantization(Protocol):
    """A checkpoint's method. Crosses processes."""

    @property
    def method(self) -> str:
        """Its quant_method."""

    @property
    def kv_cache(self) -> KVCodes | None:
        """The type that the checkpoint has scales for keys and values of, if it has any."""

    def scheme_of(self, name: str, shape: Shape) -> Scheme | None:
        """How this parameter is stored; None: as its tensor's type says."""


@dataclass(frozen=True, slots=True)
class Everywhere:
    """One scheme for every matrix of a layer that no name of `skipped` spares and that is no router of experts."""

    scheme: Scheme
    skipped: tuple[str, ...] = ()
    kv_cache: KVCodes | None = None

    @property
    def method(self) -> str:
        return self.scheme.name.partition(" ")[0]

    def scheme_of(self, name: str, shape: Shape) -> Scheme | None:
        if not is_in_layer(name, shape) or is_router(name) or is_named(name, self.skipped):
            return None
        return self.scheme


def is_in_layer(name: str, shape: Shape) -> bool:
    """Whether this is a matrix of a layer."""
    return len(shape) == 2 and re.search(r"\.\d+\.", name) is not None


def is_router(name: str) -> bool:
    """Whether a parameter chooses or weighs experts: few numbers, which most methods leave dense."""
    return re.search(r"\.(gate|router|router\.layer|shared_expert_gate)\.weight$", name) is not None


def is_named(name: str, modules: Iterable[str]) -> bool:
    """Whether a list of modules has this parameter's, by its whole name or by parts of it: "lm_head", "mlp.down_proj",
    "model.layers.0", "model.layers.*.mlp.gate"."""
    spellings = [f".{spelling}." for spelling in spellings_of(name)]
    return any(_has(spelling, module.strip(".")) for module in modules for spelling in spellings)


def _has(spelling: str, module: str) -> bool:
    """A * stands for any characters."""
    return fnmatchcase(spelling, f"*.{module}.*") if "*" in module else f".{module}." in spelling


def spellings_of(name: str) -> list[str]:
    """The module's names in a file, by the canonical one of its parameter; a multimodal model's text part has a
    prefix, in one of two ways."""
    module = name.removesuffix(".weight")
    return [module, f"language_model.{module}", f"model.language_model.{module.removeprefix('model.')}"]


class Described:
    """Checked access to the keys of a quantization_config. within: the prefix of nested keys."""

    def __init__(self, values: Any, within: str = "quantization_config") -> None:
        if not isinstance(values, Mapping):
            raise ModelLoadError(f"{within} is {shown(values)}; allowed: an object")
        self.values = values
        self.within = within

    def get(self, *keys: str) -> Any:
        """The first of these keys that has a value."""
        return next((self.values[key] for key in keys if self.values.get(key) is not None), None)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if not isinstance(default if value is None else value, bool):
            raise self.wrong(key, "true and false")
        return default if value is None else bool(value)

    def choice(self, keys: str | tuple[str, ...], allowed: Iterable[Any], default: Any = None) -> Any:
        names = (keys,) if isinstance(keys, str) else keys
        value = self.get(*names)
        value = default if value is None else value
        allowed = tuple(allowed)
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise self.wrong(names[0], ", ".join(map(str, allowed)), UnsupportedModelError)
        return value

    def group_size(self, *keys: str) -> int:
        """Inputs that share a scale; 0: all. Files have -1 for all."""
        value = self.get(*keys)
        value = 128 if value is None else value
        if type(value) is not int or (value != -1 and (not 8 <= value <= 1 << 16 or value % 8)):
            raise self.wrong(keys[0], f"-1 and multiples of 8 up to {1 << 16}")
        return 0 if value == -1 else value

    def names(self, *keys: str) -> tuple[str, ...]:
        value = self.get(*keys)
        value = [] if value is None else value
        if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) and len(one) < 1000 for one in value):
            raise self.wrong(keys[0], "a list of modules' names")
        return tuple(value)

    def inside(self, key: str) -> Described:
        return Described(self.values.get(key), f"{self.within}.{key}")

    def refuse(self, key: str, *allowed: Any) -> None:
        value = self.get(key)
        if value is not None and value not in allowed:
            raise self.wrong(key, ", ".join(map(repr, allowed)) or "none", UnsupportedModelError)

    def wrong(self, key: str, allowed: str, kind: type[ModelLoadError] = ModelLoadError) -> ModelLoadError:
        return kind(f"{self.within}.{key} is {shown(self.values.get(key))}; Octavo reads: {allowed}")


def kv_codes(described: Described) -> KVCodes | None:
    """What its kv_cache_scheme says."""
    if described.get("kv_cache_scheme") is None:
        return None
    scheme = described.inside("kv_cache_scheme")
    scheme.choice("num_bits", (8,), 8)
    scheme.choice("strategy", ("tensor", "attn_head"), "tensor")
    scheme.choice("symmetric", (True,), True)
    scheme.choice("dynamic", (False,), False)
    return "fp8" if scheme.choice("type", ("float", "int"), "float") == "float" else "int8"


def pattern(described: Described, text: str) -> re.Pattern[str]:
    """A regular expression from a file."""
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ModelLoadError(f"{described.within} has the pattern {shown(text)}: {error}") from None
