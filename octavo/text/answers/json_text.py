"""JSON inside an answer: handed over piece by piece as it comes, and checked when it is whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from octavo.text.answers.feed import BrokenCall, Feed, Steps

#: levels of arguments; deeper ones are no call
MAX_DEPTH = 64

_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')
_SCALAR = re.compile(r"[-+.\w]*")


def json_text(feed: Feed, hand: Callable[[str], None]) -> Steps[None]:
    """Hand over the text of the value that comes next."""
    first = yield from feed.upcoming()
    if first in ("{", "[", '"'):
        end = _End()
        while not end.is_reached:
            if feed.text:
                hand(feed.take(end.within(feed.text)))
            elif feed.has_ended:
                raise BrokenCall
            else:
                yield
    else:
        hand((yield from feed.match(_SCALAR)))


def json_value(feed: Feed, hand: Callable[[str], None] | None = None) -> Steps[Any]:
    """The value that comes next; hand: gets its text meanwhile."""
    parts: list[str] = []

    def keep(piece: str) -> None:
        parts.append(piece)
        if hand is not None:
            hand(piece)

    yield from json_text(feed, keep)
    return parsed("".join(parts))


def parsed(text: str) -> Any:
    """The value of a text. Raises BrokenCall."""
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        raise BrokenCall from None


def refuse_constant(name: str) -> Any:
    """For NaN and Infinity, which Python reads."""
    raise ValueError(f"{name} is not JSON")


class _End:
    """Finds the end of an object, a list or a string by its brackets and quotes."""

    def __init__(self) -> None:
        self.is_reached = False
        self._depth = 0
        self._is_string = self._is_escaped = False

    def within(self, text: str) -> int:
        """How many characters of the text belong to the value."""
        at = 0
        if self._is_escaped:
            at, self._is_escaped = 1, False
        while (found := (_INSIDE if self._is_string else _OUTSIDE).search(text, at)) is not None:
            at = found.end()
            mark = found.group()
            if mark == "\\":
                if at == len(text):
                    self._is_escaped = True
                    return at
                at += 1
                continue
            if mark == '"':
                self._is_string = not self._is_string
            else:
                self._depth += 1 if mark in "{[" else -1
                if self._depth > MAX_DEPTH:
                    raise BrokenCall
            if not self._depth and not self._is_string:
                self.is_reached = True
                return at
        return len(text)
