"""JSON files that come with a model: an object, or an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo.errors import ModelLoadError
from octavo.models.regular_file import is_there, read_regular
from octavo.shown import shown


def read_json(path: Path) -> dict[str, Any]:
    return parse_json_object(read_regular(path), str(path))


def read_optional_json(path: Path) -> dict[str, Any]:
    """Empty if there is no such file."""
    return read_json(path) if is_there(path) else {}


def parse_json_object(content: bytes, label: str) -> dict[str, Any]:
    """label: what to call the text in messages. A key may come twice only with the same value."""
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
