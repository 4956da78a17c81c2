"""Calls that are written as Python: [add(a=1, b=2), greet(name="Ada")]."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

from octavo.text.answers.feed import BrokenCall, Feed, Steps
from octavo.text.answers.json_text import MAX_DEPTH

#: characters of one call
MAX_CALL = 2**18

_OUTSIDE = re.compile(r"[\"'()\[\]{},]")
_INSIDE = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}
_KEY = re.compile(r"\s*[^\W\d]\w*\s*")
#: ast.parse takes a stack frame for each level, and for each sign before a number
_DEEP = re.compile(r"[-+~]{9}")


@dataclass(frozen=True, slots=True)
class PythonCalls:
    opens: tuple[str, ...]
    close: str
    bare: str = "["

    def read(self, feed: Feed, mark: str) -> Steps[None]:
        yield from feed.expect("[")
        while True:
            name, _ = yield from feed.name_until("(")
            parts = yield from _inside(feed)
            feed.begin(name)
            feed.grow(_arguments(parts))
            feed.end()
            if (yield from feed.expect(",", "]")) == "]":
                break
        if self.close:
            yield from feed.close(self.close)


def _inside(feed: Feed) -> Steps[list[str]]:
    """The texts between commas, up to the parenthesis that closes the call."""
    arguments: list[str] = []
    parts: list[str] = []
    size, depth, quote, is_escaped = 0, 1, "", False
    while True:
        at = 1 if is_escaped and feed.text else 0
        is_escaped = is_escaped and not feed.text
        while (found := (_INSIDE[quote] if quote else _OUTSIDE).search(feed.text, at)) is not None:
            mark, at = found.group(), found.end()
            if mark == "\\":
                is_escaped = at == len(feed.text)
                at += 1
            elif mark in "\"'":
                quote = "" if quote else mark
            elif mark == ",":
                if depth == 1:
                    arguments.append("".join([*parts, feed.take(at)[:-1]]))
                    parts, at = [], 0
            else:
                depth += 1 if mark in "([{" else -1
            if depth > MAX_DEPTH:
                raise BrokenCall
            if not depth:
                return [*arguments, "".join([*parts, feed.take(at)[:-1]])]
        size += len(feed.text)
        parts.append(feed.take(len(feed.text)))
        if feed.has_ended or size > MAX_CALL:
            raise BrokenCall
        yield


def _arguments(texts: list[str]) -> str:
    """The arguments as JSON. They are read one by one: a name may be a word of Python, such as from."""
    if not texts[-1].strip():
        texts.pop()  # there is none, or a comma before it
    values: dict[str, Any] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not _KEY.fullmatch(key) or key.strip() in values or _DEEP.search(value):
            raise BrokenCall
        try:
            values[key.strip()] = _value(ast.parse(f"({value.strip()}\n)", mode="eval").body)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise BrokenCall from None
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError):
        raise BrokenCall from None


def _value(node: ast.expr) -> Any:
    """A literal; models also write JSON's true, false and null."""
    match node:
        case ast.Name("true"):
            return True
        case ast.Name("false"):
            return False
        case ast.Name("null"):
            return None
        case ast.List(items) | ast.Tuple(items):
            return [_value(one) for one in items]
        case ast.Dict(keys, values):
            made = {}
            for key, value in zip(keys, values, strict=True):
                if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                    raise BrokenCall
                made[key.value] = _value(value)
            return made
    return ast.literal_eval(node)
