"""Gemma's calls, JSON without quotes around keys and with marks around texts: call:add{a:1,b:[<escape>x<escape>]}."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from octavo.text.answers.feed import BrokenCall, Feed, Steps
from octavo.text.answers.json_text import MAX_DEPTH, parsed

_KEY = re.compile(r"[^\s:,{}\[\]]*")
_SCALAR = re.compile(r"[-+.\w]*")


@dataclass(frozen=True, slots=True)
class BraceCalls:
    """quote: stands on both sides of a text."""

    opens: tuple[str, ...]
    quote: str
    close: str
    bare: str = ""

    def read(self, feed: Feed, mark: str) -> Steps[None]:
        yield from feed.expect("call:")
        name, _ = yield from feed.name_until("{")
        values = yield from self._object(feed, 1)
        feed.begin(name)
        feed.grow(json.dumps(values, ensure_ascii=False))
        feed.end()
        yield from feed.close(self.close)

    def _object(self, feed: Feed, depth: int) -> Steps[dict[str, Any]]:
        made: dict[str, Any] = {}
        if (yield from feed.next_mark("}")):
            return made
        while True:
            key = yield from self._key(feed)
            yield from feed.expect(":")
            made[key] = yield from self._value(feed, depth)
            if (yield from feed.expect(",", "}")) == "}":
                return made

    def _key(self, feed: Feed) -> Steps[str]:
        if (yield from feed.next_mark(self.quote)):
            return (yield from self._text(feed))
        key = yield from feed.match(_KEY)
        if not key:
            raise BrokenCall
        return key

    def _value(self, feed: Feed, depth: int) -> Steps[Any]:
        if depth > MAX_DEPTH:
            raise BrokenCall
        mark = yield from feed.next_mark(self.quote, "{", "[")
        if mark == self.quote:
            return (yield from self._text(feed))
        if mark == "{":
            return (yield from self._object(feed, depth + 1))
        if mark == "[":
            return (yield from self._list(feed, depth + 1))
        return parsed((yield from feed.match(_SCALAR)))

    def _list(self, feed: Feed, depth: int) -> Steps[list[Any]]:
        made: list[Any] = []
        if (yield from feed.next_mark("]")):
            return made
        while True:
            made.append((yield from self._value(feed, depth)))
            if (yield from feed.expect(",", "]")) == "]":
                return made

    def _text(self, feed: Feed) -> Steps[str]:
        parts: list[str] = []
        if not (yield from feed.until((self.quote,), parts.append)):
            raise BrokenCall
        return "".join(parts)
