"""Files that commands write: checked before the work, so that it is not lost, and written after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo.cli.flags import machine_facts
from octavo.errors import ConfigError
from octavo.pictures.chart import page
from octavo.pictures.picture import Picture, svg
from octavo.pictures.png import check_png, png

PICTURES = (".html", ".svg", ".png")


def check_folder(flag: str, folder: Path) -> None:
    """Raise ConfigError if there is no such folder for a file."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: {flag} cannot be written there; create it first")


def check_plot(path: str | None) -> None:
    """Raise ConfigError if --plot names a file that cannot be drawn."""
    if path is None:
        return
    if Path(path).suffix not in PICTURES:
        raise ConfigError(f"--plot {path}: allowed are names that end in {', '.join(PICTURES)}")
    if path.endswith(".png"):
        check_png("--plot", path, "name a file that ends in .html or .svg")
    check_folder("--plot", Path(path).parent)


def write_plot(path: str, picture: Picture, rows: Sequence[Sequence[str]], note: str) -> None:
    """rows, note: as a page shows them below the picture."""
    if path.endswith(".png"):
        write_file("--plot", path, png(picture))
    else:
        write_file("--plot", path, page(picture, rows, note) if path.endswith(".html") else svg(picture))


def write_json(path: str, result: dict[str, Any]) -> None:
    """Write a benchmark's result, with the machine that it was measured on."""
    write_file("--output-json", path, json.dumps({"machine": machine_facts(), **result}, indent=2))


def write_file(flag: str, path: str | Path, content: str | bytes, *, is_added: bool = False) -> None:
    """is_added: to the end of what the file holds."""
    try:
        with open(path, "ab" if is_added else "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
    except (OSError, ValueError) as error:  # a name may hold what no file's can
        raise ConfigError(f"{flag} {path} cannot be written: {error}") from None
