"""What messages quote: values and names as they were given, short however large or deep they are."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

_MOST_CHARACTERS = 100
_MOST_BITS = 80  # of an integer that is written out


class _Short(reprlib.Repr):
    def repr_int(self, number: int, level: int) -> str:
        """Python refuses to write the longest, and nobody reads them."""
        bits = number.bit_length()
        return str(number) if bits <= _MOST_BITS else f"a number of {bits} bits"

    def repr_dict(self, values: dict[Any, Any], level: int) -> str:
        """In their own order, and no further than they are shown: reprlib would sort them all."""
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
    """A value in Python's notation, cut where it gets long."""
    return cut(_SHORT.repr(value), _MOST_CHARACTERS)


def shown_names(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(_SHORT.repr(name).strip("'\"") for name in names[:most]) + more


def cut(text: str, most: int = 200) -> str:
    """Words of somebody else's, or the beginning of them."""
    return text if len(text) <= most else text[: most - 3] + "..."


def suggestion(name: str, known: Iterable[str]) -> str:
    """Of an unknown name: what was probably meant, or all that there is."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:64], names, 1)
    return f"did you mean {close[0]!r}?" if close else f"allowed are {', '.join(names)}"
