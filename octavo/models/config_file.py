"""Typed access to one config.json: what a key holds, or an error that names file, key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.ops import Activation

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


class ConfigFile:
    """A null counts as left out."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def size(self, key: str, default: Any = _REQUIRED, largest: int = 1 << 31) -> int:
        """A whole number from 1 up."""
        value = self._get(key, default)
        if type(value) is not int or not 1 <= value <= largest:
            raise self.wrong(key, f"1 to {largest}")
        return value

    def optional_size(self, key: str) -> int | None:
        return None if self.values.get(key) is None else self.size(key)

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, "a number")
        return float(value)

    def optional_number(self, key: str, default: float | None = None) -> float | None:
        """Here a null means none, and only a key left out the default."""
        value = self.values.get(key, default)
        return None if value is None else self.number(key, default)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true and false")
        return value

    def activation(self, key: str, default: str) -> Activation:
        value = self._get(key, default)
        if value not in _ACTIVATIONS:
            raise self.wrong(key, ", ".join(_ACTIVATIONS), UnsupportedModelError)
        return _ACTIVATIONS[value]

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id or a list of them."""
        value = self.values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(type(token_id) is not int for token_id in ids):
            raise self.wrong(key, "a token id or a list of them")
        return tuple(token_id for token_id in ids if token_id >= 0)

    def refuse(self, key: str, *allowed: Any) -> None:
        """Raise unless the key is left out or has one of these values."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise self.wrong(key, ", ".join(repr(choice) for choice in allowed) or "none", UnsupportedModelError)

    def wrong(self, key: str, allowed: str, kind: type[ModelLoadError] = ModelLoadError) -> ModelLoadError:
        return kind(f"{self.path}: {key} is {self.values.get(key)!r}; allowed: {allowed}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ModelLoadError(f"{self.path}: key {key!r} is missing; download the model's config.json again")
        return default
