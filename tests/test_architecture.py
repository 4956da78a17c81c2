"""ARCHITECTURE.md has exactly one line for every source file, so that the map never lies."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = ("octavo/**/*.py", "csrc/**/*.h", "csrc/**/*.cpp", "csrc/**/*.cu", "benchmarks/**/*.py", "examples/**/*.py")
LINE = re.compile(r"^- `([^`]+)`: \S", re.MULTILINE)


def source_files() -> set[str]:
    """Every file that has something in it; an empty __init__.py is only a folder's name tag."""
    files = (path for pattern in SOURCES for path in ROOT.glob(pattern))
    return {path.relative_to(ROOT).as_posix() for path in files if path.stat().st_size > 0}


def described_files() -> list[str]:
    return LINE.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))


def test_every_source_file_has_a_line() -> None:
    missing = sorted(source_files() - set(described_files()))
    assert not missing, "ARCHITECTURE.md lacks a line for: " + ", ".join(missing)


def test_every_line_names_a_source_file() -> None:
    stale = sorted(set(described_files()) - source_files())
    assert not stale, "ARCHITECTURE.md describes files that are not there: " + ", ".join(stale)


def test_no_file_is_described_twice() -> None:
    lines = described_files()
    twice = sorted({path for path in lines if lines.count(path) > 1})
    assert not twice, "ARCHITECTURE.md has more than one line for: " + ", ".join(twice)
