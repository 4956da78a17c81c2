"""The sampling defaults of an engine: the model makers', another folder's or vLLM's, and what an option changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.config import ModelConfig
from octavo.errors import ConfigError, InvalidRequestError
from octavo.models.config_file import checked_defaults, read_json
from octavo.sampling_params import SamplingParams, known_to
from octavo.shown import cut, shown, suggestion

FILE = "generation_config.json"


def sampling_defaults(config: ModelConfig, recommended: Mapping[str, Any]) -> SamplingParams:
    """recommended: by the model's own files, under SamplingParams' names. Raises ConfigError, and ModelLoadError for
    another folder's file."""
    changed = _overridden(config.override_generation_config)
    merged = {**_source(config.generation_config, recommended), **changed}
    return SamplingParams(**{name: value for name, value in merged.items() if value is not None})


def _source(name: str, recommended: Mapping[str, Any]) -> Mapping[str, Any]:
    if name == "auto":
        return recommended
    if name == "vllm":
        return {}
    path = Path(name) / FILE
    if not path.is_file():
        raise ConfigError(
            f"generation_config is {shown(name)}, allowed are 'auto' for the model's own defaults, 'vllm' for those of "
            f"SamplingParams, and a folder with a {FILE}"
        )
    return checked_defaults(path, read_json(path), known_to("transformers"))


def _overridden(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """By SamplingParams' names. None takes a default of the model's away."""
    known = known_to("transformers")
    values: dict[str, Any] = {}
    for key, value in _object(given).items():
        if key not in known:
            raise ConfigError(
                f"override_generation_config has the key {shown(key)}, allowed are {', '.join(known)}; "
                f"{suggestion(str(key), known)}"
            )
        try:
            values[known[key]] = None if value is None else getattr(SamplingParams(**{known[key]: value}), known[key])
        except (InvalidRequestError, OverflowError) as error:
            raise ConfigError(f"override_generation_config's {key} cannot be a default: {cut(str(error))}") from None
    return values


def _object(given: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    try:
        asked = json.loads(given) if isinstance(given, str) else given or {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"override_generation_config is {shown(given)}, which is not JSON: {error}") from None
    if not isinstance(asked, Mapping):
        example = '{"temperature": 0.5}'
        raise ConfigError(f"override_generation_config is {shown(given)}, allowed is an object such as {example}")
    return asked
