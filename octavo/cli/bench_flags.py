"""What the bench commands share: counts that must be positive, and results written as JSON."""

from __future__ import annotations

import argparse
import json
from typing import Any

from octavo.errors import ConfigError


def check_counts(args: argparse.Namespace, *names: str) -> None:
    """Raise ConfigError for a count below 1; None is one that was left out."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, allowed is 1 or more")


def write_json(path: str, result: dict[str, Any]) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
    except OSError as error:
        raise ConfigError(f"--output-json {path} cannot be written: {error}") from None
