"""JSON files that come with a model: an object, or an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo.errors import ModelLoadError


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} holds no JSON object; download it again")
    return content


def read_optional_json(path: Path) -> dict[str, Any]:
    """Empty if there is no such file."""
    return read_json(path) if path.is_file() else {}
