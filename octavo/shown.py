"""Values and names as messages quote them: short, however large or deep they are."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

_MOST_CHARACTERS = 100
_MOST_BITS = 80  # longer integers are not written out


class _Short(reprlib.Repr):
    def repr_int(self, number: int, level: int) -> str:
        """Python refuses to format very long integers."""
        bits = number.bit_length()
        return str(number) if bits <= _MOST_BITS else f"a number of {bits} bits"

    def repr_dict(self, values: dict[Any, Any], level: int) -> str:
        """The first items in their own order: reprlib would sort all of them."""
        if level <= 0:
            return "{...}" if values else "{}"
        pieces = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in islice(values.items(), self.maxdict)
        ]
        return f"{{{', '.join([*pieces, '...'] if len(values) > self.maxdict else pieces)}}}"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxdict = 8
_SHORT.maxlevel = 3


def shown(value: Any) -> str:
    """A value in Python's notation, truncated."""
    return cut(_SHORT.repr(value), _MOST_CHARACTERS)


def shown_names(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and the number of the rest."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(_SHORT.repr(name).strip("'\"") for name in names[:most]) + more


def cut(text: str, most: int = 200) -> str:
    """A text, truncated to `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def suggestion(name: str, known: Iterable[str]) -> str:
    """For an unknown name: the closest known one, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:64], names, 1)
    return f"did you mean {close[0]!r}?" if close else f"allowed are {', '.join(names)}"
