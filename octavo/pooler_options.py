"""The option pooler_config, as it is declared: an object, or its JSON text, with vLLM's keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo.errors import ConfigError
from octavo.shown import shown, suggestion

KIND_KEYS = ("pooling_type", "seq_pooling_type")
#: vLLM's present and former names of the same switch
ACTIVATION_KEYS = ("use_activation", "normalize", "activation", "softmax")
_KNOWN = (*KIND_KEYS, *ACTIVATION_KEYS)


def read_pooler_options(given: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises ConfigError."""
    try:
        asked = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"pooler_config is {shown(given)}, which is not JSON: {error}") from None
    if not isinstance(asked, Mapping):
        raise ConfigError(f"pooler_config is {shown(given)}, allowed is an object with {KIND_KEYS[0]} and the like")
    for key, value in asked.items():
        if key not in _KNOWN:
            keys, hint = ", ".join(_KNOWN), suggestion(str(key), _KNOWN)
            raise ConfigError(
                f"pooler_config is {shown(given)}, allowed are the keys {keys}; it has {shown(key)}; {hint}"
            )
        if value is not None and not isinstance(value, str if key in KIND_KEYS else bool):
            allowed = "a text" if key in KIND_KEYS else "true and false"
            raise ConfigError(f"pooler_config's {key} is {shown(value)}, allowed: {allowed}")
    return asked
