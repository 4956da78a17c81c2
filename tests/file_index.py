"""docs/files.md: one line for every source file, taken from the top of the file itself.

    make index        python tests/file_index.py > docs/files.md

The line is the first one of a module's docstring, or the first comment of a C++ file; it must describe the file
without context. tests/test_architecture.py checks that, and that docs/files.md is what this program writes.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACES = ("octavo", "csrc", "benchmarks", "examples")  # in the order of the page
SUFFIXES = (".py", ".h", ".cpp", ".cu")
DOCSTRING = re.compile(r'(?:#.*\n)*"""(.*?)(?:"""|\n)')  # its first line; to parse the files would take seconds

HEAD = """\
# Files

What every source file is, in its own first line. `make index` writes this page; to change a line, change the file.
[ARCHITECTURE.md](../ARCHITECTURE.md) explains how they fit together.
"""


def source_files() -> list[Path]:
    """Every file that is not empty, which some __init__.py are."""
    found = (path for place in PLACES for suffix in SUFFIXES for path in ROOT.glob(f"{place}/**/*{suffix}"))
    files = [path.relative_to(ROOT) for path in found if path.stat().st_size > 0]
    return sorted(files, key=lambda path: (PLACES.index(path.parts[0]), path.parts[1:-1], path.name))


def first_line(path: Path) -> str:
    """The file's description; empty if it has none."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        found = DOCSTRING.match(text)
        return found[1] if found is not None else ""
    return text.partition("\n")[0].removeprefix("// ") if text.startswith("// ") else ""


def index() -> str:
    sections = [HEAD]
    for folder, files in groupby(source_files(), key=lambda path: path.parent):
        sections.append(f"\n## {folder.as_posix()}\n\n")
        sections += [f"- [{path.name}](../{path.as_posix()}): {first_line(path)}\n" for path in files]
    return "".join(sections)


if __name__ == "__main__":
    print(index(), end="")
