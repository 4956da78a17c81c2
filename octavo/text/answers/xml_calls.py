"""Calls whose arguments are elements, one for each parameter. The texts in them have no types: the schema does.

<function=add>
<parameter=a>
1
</parameter>
</function>
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.text.answers.feed import BrokenCall, Feed, Steps
from octavo.text.answers.json_text import refuse_constant

#: values of a parameter are read as Python only up to this many characters
_MAX_LITERAL, _MAX_OPERATORS = 2**16, 1000


@dataclass(frozen=True, slots=True)
class XmlCalls:
    """opens: begin a call, or a list of them, which `close` ends. function: stands before a name, which ends with one
    of name_end. parameter: stands before a key, which ends with key_end and has `value` behind it. end: of a value.
    function_end: of a call. is_padded: one line end on each side of a value is markup."""

    opens: tuple[str, ...]
    function: str
    name_end: tuple[str, ...]
    parameter: str
    key_end: str
    value: str
    end: str
    function_end: str
    close: str
    is_padded: bool = True
    bare: str = ""

    def read(self, feed: Feed, mark: str) -> Steps[None]:
        if mark != self.function and self.function:
            yield from feed.expect(self.function)
        yield from self._call(feed)
        while self.function and (yield from feed.next_mark(self.function)):
            yield from self._call(feed)
        if self.close:
            yield from feed.close(self.close)

    def _call(self, feed: Feed) -> Steps[None]:
        name, end = yield from feed.name_until(*self.name_end)
        feed.begin(name)
        values = Arguments(feed, name, self.is_padded)
        while end != self.function_end:
            if end == self.parameter:
                yield from self._parameter(feed, values)
            end = yield from feed.expect(self.parameter, self.function_end)
        values.end()

    def _parameter(self, feed: Feed, into: Arguments) -> Steps[None]:
        key, _ = yield from feed.name_until(self.key_end)
        if self.value:
            yield from feed.expect(self.value)
        into.begin(key)
        if not (yield from feed.until((self.end,), into.add)):
            raise BrokenCall
        into.end_value()


class Arguments:
    """Writes a call's arguments as JSON, each value by the type that the schema gives it. Texts are given out as they
    come."""

    def __init__(self, feed: Feed, name: str, is_padded: bool) -> None:
        properties = feed.functions[name].get("properties")
        self._properties: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
        self._feed = feed
        self._padding = "\n" if is_padded else ""
        self._keys: set[str] = set()
        self._parts: list[str] = []
        self._types: frozenset[str] = frozenset()
        self._held = ""
        self._is_text = self._is_first = False

    def begin(self, key: str) -> None:
        if key in self._keys:
            raise BrokenCall
        self._feed.grow(("{" if not self._keys else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
        self._keys.add(key)
        self._types = types_of(self._properties.get(key))
        self._is_text, self._is_first = self._types == {"string"}, True
        self._parts, self._held = [], ""
        if self._is_text:
            self._feed.grow('"')

    def add(self, piece: str) -> None:
        if not self._is_text:
            self._parts.append(piece)
            return
        if self._is_first and piece:
            piece, self._is_first = piece.removeprefix(self._padding), False
        text = self._held + piece
        self._held = self._padding if text.endswith(self._padding) else ""
        self._feed.grow(json.dumps(text.removesuffix(self._padding), ensure_ascii=False)[1:-1])

    def end_value(self) -> None:
        if self._is_text:
            self._feed.grow('"')
            return
        text = "".join(self._parts).removeprefix(self._padding).removesuffix(self._padding)
        self._feed.grow(json.dumps(typed(text, self._types), ensure_ascii=False))

    def end(self) -> None:
        self._feed.grow("}" if self._keys else "{}")
        self._feed.end()


def types_of(schema: Any, depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema allows; empty if it does not say."""
    if not isinstance(schema, Mapping) or depth > 8:
        return frozenset()
    kind = schema.get("type")
    if isinstance(kind, str):
        return frozenset((kind,))
    if isinstance(kind, list):
        return frozenset(one for one in kind if isinstance(one, str))
    if isinstance(values := schema.get("enum"), list) and values and all(isinstance(one, str) for one in values):
        return frozenset(("string",))
    found: frozenset[str] = frozenset()
    for name in ("anyOf", "oneOf", "allOf"):
        if isinstance(several := schema.get(name), list):
            found |= frozenset().union(*(types_of(one, depth + 1) for one in several))
    return found


def typed(text: str, types: frozenset[str]) -> Any:
    """The value that a text stands for: of one of the types, or else the text itself."""
    bare = text.strip()
    if "string" in types and bare not in ("null", "None"):
        return text
    for read in (_json_value, _python_value):
        found, value = read(bare)
        if found and (not types or types & _names(value)):
            return value
    if bare.lower() in ("true", "false") and "boolean" in types:
        return bare.lower() == "true"
    return text


def _names(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    return {"string"} if isinstance(value, str) else {"array"} if isinstance(value, list) else {"object"}


def _json_value(text: str) -> tuple[bool, Any]:
    try:
        return True, json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return False, None


def _python_value(text: str) -> tuple[bool, Any]:
    """Templates print lists and truth values as Python does."""
    if len(text) > _MAX_LITERAL or sum(map(text.count, "-+~")) > _MAX_OPERATORS:
        return False, None
    try:
        value = ast.literal_eval(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False, None
    return not isinstance(value, str), value
