"""A model's JSON files: reading, typed access to keys, and sampling defaults.

A file is not trusted: each value's type and range are checked before it is used as a key, a length or an operand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from math import inf, isfinite
from pathlib import Path
from typing import Any

from octavo.errors import InvalidRequestError, ModelLoadError, UnsupportedModelError
from octavo.kernels.ops import Activation
from octavo.models.regular_file import is_there, read_regular
from octavo.sampling_params import SamplingParams
from octavo.shown import cut, shown

LARGEST_SIZE = 1 << 31
LARGEST_NUMBER = 1e30  # far above any number a model needs; float32 still holds 1 / sqrt of it

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_REQUIRED: Any = object()
_WHOLE = frozenset(one.name for one in fields(SamplingParams) if one.type in ("int", "int | None"))


class ConfigFile:
    """A null counts as a missing key. within: the prefix of nested keys, such as "rope_scaling."."""

    def __init__(self, path: Path, values: dict[str, Any], within: str = "") -> None:
        self.path = path
        self.values = values
        self.within = within

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def size(self, key: str, default: Any = _REQUIRED, largest: int = LARGEST_SIZE, smallest: int = 1) -> int:
        """A whole number, by default from 1 up."""
        value = self._get(key, default)
        if type(value) is not int or not smallest <= value <= largest:
            raise self.wrong(key, f"{smallest} to {largest}")
        return value

    def optional_size(self, key: str) -> int | None:
        return self.size(key) if self.has(key) else None

    def number(
        self,
        key: str,
        default: Any = _REQUIRED,
        *,
        above: float = -inf,
        least: float = -inf,
        most: float = LARGEST_NUMBER,
    ) -> float:
        """A finite number, more than `above`, at least `least`, and `most` at most."""
        value = self._get(key, default)
        if not _is_number(value) or not above < value or not least <= value <= most:
            low = "" if above == least == -inf else f" above {above:g}" if above > least else f" from {least:g}"
            raise self.wrong(key, f"a number{low} up to {most:g}")
        return float(value)

    def optional_number(self, key: str, default: float | None = None, *, above: float = -inf) -> float | None:
        """Here a null means None; only a missing key gets the default."""
        value = self.values.get(key, default)
        return None if value is None else self.number(key, default, above=above)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true and false")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def optional_text(self, key: str) -> str | None:
        return self.text(key) if self.has(key) else None

    def numbers(self, key: str, *, least: float, most: float) -> list[float]:
        """A list of numbers, each from `least` to `most`."""
        value = self._get(key, _REQUIRED)
        if not isinstance(value, list) or not all(_is_number(item) and least <= item <= most for item in value):
            raise self.wrong(key, f"a list of numbers from {least:g} to {most:g}")
        return [float(item) for item in value]

    def items(self, key: str) -> list[Any]:
        """A list of anything; empty if the key is missing."""
        value = self._get(key, [])
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        return value

    def inside(self, key: str) -> ConfigFile:
        """The object under a key; empty if the key is missing."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return ConfigFile(self.path, value, f"{self.within}{key}.")

    def activation(self, key: str, default: str) -> Activation:
        value = self._get(key, default)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self.wrong(key, ", ".join(_ACTIVATIONS), UnsupportedModelError)
        return _ACTIVATIONS[value]

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id or a list of them."""
        value = self.values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(type(token_id) is not int for token_id in ids):
            raise self.wrong(key, "a token id or a list of them")
        return tuple(dict.fromkeys(token_id for token_id in ids if token_id >= 0))

    def refuse(self, key: str, *allowed: Any) -> None:
        """Raise unless the key is missing or has one of these values."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise self.wrong(key, ", ".join(repr(choice) for choice in allowed) or "none", UnsupportedModelError)

    def wrong(self, key: str, allowed: str, kind: type[ModelLoadError] = ModelLoadError) -> ModelLoadError:
        return kind(f"{self.path}: {self.within}{key} is {shown(self.values.get(key))}; allowed: {allowed}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ModelLoadError(f"{self.path}: key '{self.within}{key}' is missing; download the file again")
        return default


def _is_number(value: Any) -> bool:
    """Whole numbers beyond float64's range are compared, not converted."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -LARGEST_NUMBER <= value <= LARGEST_NUMBER and isfinite(value)


def read_json(path: Path) -> dict[str, Any]:
    return parse_json_object(read_regular(path), str(path))


def read_optional_json(path: Path) -> dict[str, Any]:
    """Empty if there is no such file."""
    return read_json(path) if is_there(path) else {}


def parse_json_object(content: bytes, label: str) -> dict[str, Any]:
    """label: names the text in messages. A key may appear twice only with the same value."""
    try:
        value = json.loads(content, object_pairs_hook=_without_contradictions)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{label} is not valid JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{label} holds no JSON object; download it again")
    return value


def _without_contradictions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        for name, value in pairs:
            if value != entries[name]:
                raise ValueError(f"key {shown(name)} appears twice, with two values")
    return entries


def checked_defaults(path: Path, values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """names: the file's keys -> SamplingParams' fields. A null counts as a missing key."""
    defaults: dict[str, Any] = {}
    for key, name in names.items():
        value = values.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelLoadError(f"{path}: {key} is {shown(value)}; allowed: a number")
        if name in _WHOLE and isinstance(value, float) and value.is_integer():
            value = int(value)  # 20.0, as JSON of some languages has it
        try:
            checked: dict[str, Any] = {name: value}
            SamplingParams(**checked)
        except (InvalidRequestError, OverflowError) as error:
            raise ModelLoadError(f"{path}: {key} cannot be a default: {cut(str(error))}; correct the file") from None
        defaults[name] = value
    return defaults
