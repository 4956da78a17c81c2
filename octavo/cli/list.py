"""List the models on this machine, with their sizes: packaged, from the hub, and in a folder.

octavo list                     the last being this one
octavo list /data/models
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from octavo.cli.inventory import SECTIONS, Found, models_in
from octavo.cli.parser import CommandParser

_ADVICE = {"from the hub": "none; `octavo pull OWNER/NAME` downloads one"}


def add_arguments(parser: CommandParser) -> None:
    parser.usage = "octavo list [FOLDER ...] [--json]"
    parser.add_argument("folder", nargs="*", type=Path, help="where to look for folders and .gguf files; default: here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    found = {title: list(look()) for title, look in SECTIONS.items()}
    for folder in args.folder or [Path()]:
        found[f"in {folder if args.folder else 'this folder'}"] = list(models_in(folder))
    if args.json:
        print(json.dumps({title: [asdict(model) for model in models] for title, models in found.items()}, indent=2))
        return 0
    for index, (title, models) in enumerate(found.items()):
        print("" if index == 0 else "\n", title, sep="")
        _print_models(models, _ADVICE.get(title, "none"))
    return 0


def _print_models(models: list[Found], advice: str) -> None:
    if not models:
        print(f"  {advice}")
        return
    width = max(len(model.name) for model in models)
    for model in models:
        print(f"  {model.name:<{width}}  {_size_text(model.num_bytes):>9}  {model.note}".rstrip())


def _size_text(num_bytes: int | None) -> str:
    if num_bytes is None:
        return "not here"
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
