"""What the bench commands share: counts that must be positive, the vocabulary of prompts, results as JSON."""

from __future__ import annotations

import argparse
import json
from typing import Any

from octavo.config import ModelConfig
from octavo.errors import ConfigError


def check_counts(args: argparse.Namespace, *names: str, least: int = 1) -> None:
    """Raise ConfigError for a count below `least`; None is one that was left out."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, allowed is {least} or more")


def vocab_size(args: argparse.Namespace) -> int:
    """Of --model, read from its configuration: random prompts are drawn from it."""
    from octavo.models.loader import open_checkpoint

    model = ModelConfig(model=args.model, load_format=getattr(args, "load_format", "auto"))
    return open_checkpoint(model).architecture.vocab_size


def write_json(path: str, result: dict[str, Any]) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
    except OSError as error:
        raise ConfigError(f"--output-json {path} cannot be written: {error}") from None
