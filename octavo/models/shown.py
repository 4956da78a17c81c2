"""Values of files that are not trusted, written into an error message: short, however large or deep they are."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxdict = 8
_SHORT.maxlevel = 3


def shown(value: Any) -> str:
    """Python's notation, cut where it gets long."""
    return _SHORT.repr(value)


def shown_names(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(_SHORT.repr(name).strip("'\"") for name in names[:most]) + more
