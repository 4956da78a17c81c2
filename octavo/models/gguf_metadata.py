"""Typed access to a GGUF file's metadata: what a key holds, or an error that names file, key and what is allowed."""

from __future__ import annotations

from math import isfinite
from typing import Any

from octavo.errors import ModelLoadError
from octavo.models.gguf import GGUFFile

#: GGUF's sampling keys under SamplingParams' names
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
_KIND_NAMES = {int: "a whole number", str: "a text", (int, float): "a number"}
_REQUIRED: Any = object()


class GGUFMetadata:
    """Where a method takes a `key`, it is without the architecture's prefix."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = self._get("general.architecture", str, _REQUIRED)

    def size(self, key: str, default: Any = _REQUIRED, largest: int = 1 << 31) -> int:
        """A whole number from 1 up."""
        full_key = f"{self.architecture}.{key}"
        value = int(self._get(full_key, int, default))
        if not 1 <= value <= largest:
            raise self.wrong(full_key, value, f"1 to {largest}")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        return self._number(f"{self.architecture}.{key}", default)

    def sampling_defaults(self) -> dict[str, float]:
        """What the file recommends, under SamplingParams' names."""
        found = {name: self._number(key) for key, name in _SAMPLING.items() if key in self.file.metadata}
        return {name: int(value) if name == "top_k" else value for name, value in found.items()}

    def text(self, key: str, default: str) -> str:
        return str(self._get(f"{self.architecture}.{key}", str, default))

    def optional_size(self, key: str) -> int | None:
        return self.size(key) if self.has(key) else None

    def optional_number(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def token_id(self, key: str) -> int | None:
        value = self._get(f"tokenizer.ggml.{key}", int, None)
        return None if value is None else int(value)

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.file.metadata

    def wrong(self, key: str, value: Any, allowed: str) -> ModelLoadError:
        shown = f"an array of {len(value)}" if hasattr(value, "__len__") and not isinstance(value, str) else repr(value)
        return ModelLoadError(f"{self.file.path}: metadata key {key!r} is {shown}; allowed: {allowed}")

    def _number(self, key: str, default: Any = _REQUIRED) -> float:
        value = float(self._get(key, (int, float), default))
        if not isfinite(value):
            raise self.wrong(key, value, "finite numbers")
        return value

    def _get(self, key: str, kind: Any, default: Any) -> Any:
        value = self.file.metadata.get(key, default)
        if value is _REQUIRED:
            raise ModelLoadError(f"{self.file.path}: metadata key {key!r} is missing; convert the model again")
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            raise self.wrong(key, value, _KIND_NAMES[kind])
        return value
