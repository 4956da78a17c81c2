"""Typed access to a GGUF file's metadata: a key's value, or an error with file, key, value and what is allowed."""

from __future__ import annotations

from math import inf, isfinite
from typing import Any

from octavo.errors import ModelLoadError
from octavo.models.config_file import LARGEST_NUMBER, LARGEST_SIZE, checked_defaults
from octavo.models.gguf import GGUFFile
from octavo.sampling_params import known_to
from octavo.shown import shown

#: GGUF's sampling keys under SamplingParams' names
_SAMPLING = {f"general.sampling.{theirs}": ours for theirs, ours in known_to("gguf").items()}
_KIND_NAMES = {int: "a whole number", str: "a text", (int, float): "a number"}
_NO_TOKEN = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
_REQUIRED: Any = object()


class GGUFMetadata:
    """A method's `key` is without the architecture's prefix."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = self._get("general.architecture", str, _REQUIRED)

    def size(self, key: str, default: Any = _REQUIRED, largest: int = LARGEST_SIZE, smallest: int = 1) -> int:
        """A whole number from 1 up."""
        full_key = f"{self.architecture}.{key}"
        value = int(self._get(full_key, int, default))
        if not smallest <= value <= largest:
            raise self.wrong(full_key, value, f"{smallest} to {largest}")
        return value

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
        full_key = f"{self.architecture}.{key}"
        value = self._number(full_key, default)
        if not above < value or not least <= value <= most:
            low = f"above {above:g}" if above > least else f"from {least:g}"
            raise self.wrong(full_key, value, f"a number {low}, up to {most:g}")
        return value

    @property
    def head_dim(self) -> int:
        even_share = self.size("embedding_length") // self.size("attention.head_count")
        return self.size("attention.key_length", max(1, even_share))

    @property
    def num_layers(self) -> int:
        """At most the number of tensors, since every layer has one."""
        return self.size("block_count", largest=max(1, len(self.file.tensors)))

    @property
    def vocab_size(self) -> int:
        """The embedding's rows: some files pad them past the tokenizer's vocabulary."""
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None:
            raise ModelLoadError(f"{self.file.path}: tensor 'token_embd.weight' is missing; convert the model again")
        return embedding.rows

    def sampling_defaults(self) -> dict[str, Any]:
        """What the file recommends, under SamplingParams' names."""
        found = {key: self._number(key) for key in _SAMPLING if key in self.file.metadata}
        return checked_defaults(self.file.path, found, _SAMPLING)

    def text(self, key: str, default: str) -> str:
        return str(self._get(f"{self.architecture}.{key}", str, default))

    def optional_size(self, key: str) -> int | None:
        return self.size(key) if self.has(key) else None

    def optional_number(self, key: str, **bounds: float) -> float | None:
        return self.number(key, **bounds) if self.has(key) else None

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.file.metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, bool):
            raise self.wrong(f"{self.architecture}.{key}", value, "true or false")
        return value

    def token_id(self, key: str) -> int | None:
        """None where the file has -1, or -1 as an unsigned number."""
        value = self._get(f"tokenizer.ggml.{key}", int, None)
        return None if value is None or value in _NO_TOKEN or value < 0 else int(value)

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.file.metadata

    def wrong(self, key: str, value: Any, allowed: str) -> ModelLoadError:
        is_array = hasattr(value, "__len__") and not isinstance(value, str)
        found = f"an array of {len(value)}" if is_array else shown(value)
        return ModelLoadError(f"{self.file.path}: metadata key {key!r} is {found}; allowed: {allowed}")

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
