"""Which files a C++ or CUDA source is made of: what compiled code is kept by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


def with_includes(names: Iterable[str], folders: Sequence[Path]) -> dict[str, Path | None]:
    """Sources, and all that they include in quotes, by the name that stands there -> where it lies; None: in none of
    the folders. Of files of one name the first folder's is taken."""
    found: dict[str, Path | None] = {}
    queue = list(names)
    while queue:
        if (name := queue.pop()) in found:
            continue
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        found[name] = path
        if path is not None:
            queue += _INCLUDE.findall(path.read_text(encoding="utf-8", errors="replace"))
    return found
