"""docs/files.md matches the files' first lines, and no page or comment names a missing file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.file_index import ROOT, first_line, index, source_files

FILE_NAME = re.compile(r"(?<![\w/.*<{-])((?:[\w-]+/)*\w+\.(?:py|cpp|cu))\b")
HISTORY = {Path("CHANGELOG.md"), Path("docs/log.md")}
NOT_FILES = ("llama.cpp",)


def test_files_page_is_made_from_the_files() -> None:
    assert (ROOT / "docs/files.md").read_text(encoding="utf-8") == index(), "make index"


def test_every_file_opens_with_what_it_is() -> None:
    lines = {path: first_line(path) for path in source_files()}
    bad = [f"{path}: {line!r}" for path, line in lines.items() if not line.endswith(".") or len(line) > 120]
    assert not bad, "a first line must say what the file is, and end with a full stop: " + "; ".join(bad)


def test_files_that_are_named_are_there() -> None:
    pages = {path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}
    paths = [path.relative_to(ROOT).parts for suffix in ("py", "cpp", "cu") for path in ROOT.glob(f"*/**/*.{suffix}")]
    ends = {"/".join(parts[i:]) for parts in paths for i in range(len(parts))}
    stale = [
        f"{reader} names {named}"
        for reader in sorted({*pages, *source_files()} - HISTORY)
        for named in FILE_NAME.findall((ROOT / reader).read_text(encoding="utf-8"))
        if named not in NOT_FILES and named not in ends
    ]
    assert not stale, "; ".join(stale)


def test_floors_are_drawn_as_they_are_checked() -> None:
    """In pyproject.toml, a room in brackets is one that may be added."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawing = page.partition("```\n")[2].partition("```")[0]
    drawn = [re.split(r" {3,}", line)[0] for line in drawing.splitlines()]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    checked = [re.sub(r" \| \(\w+\)|\(\w+\) \| |\(\w+\)", "", layer) for layer in layers]
    assert drawn == [layer for layer in checked if layer]
