"""Calls that are JSON, whole or in their arguments.

    <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>          an object, or a list of them
    <tool_call_begin>functions.add:0<argument_begin>{"a": 1}<call_end>     a name, then the arguments

The arguments are given out as they are written, while they are written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo.text.answers.feed import BrokenCall, Feed, Steps
from octavo.text.answers.json_text import json_value, parsed

_NAMES, _ARGUMENTS = ("name",), ("arguments", "parameters")


def arguments(feed: Feed) -> Steps[None]:
    """The JSON that comes next, as the arguments of the call that has begun."""
    if (yield from feed.upcoming()) != "{":
        value = yield from json_value(feed)
        feed.grow(_object_text(value))
        return
    value = yield from json_value(feed, feed.grow)
    assert isinstance(value, dict), "it begins with a brace"


def _object_text(value: Any) -> str:
    """Arguments may be missing, or an object written as a string."""
    if value is None or value == "":
        return "{}"
    if isinstance(value, str) and isinstance(parsed(value), dict):
        return value
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    raise BrokenCall


def call_object(feed: Feed) -> Steps[None]:
    """{"name": "add", "arguments": {"a": 1}}, with the keys in any order; other keys are skipped."""
    yield from feed.expect("{")
    name, early, is_whole = "", "{}", False
    while True:
        key = yield from json_value(feed)
        yield from feed.expect(":")
        if key in _NAMES and not name:
            name = yield from json_value(feed)
            if not isinstance(name, str):
                raise BrokenCall
        elif key in _ARGUMENTS and name and not is_whole:
            feed.begin(name)
            yield from arguments(feed)
            is_whole = True
        else:
            value = yield from json_value(feed)
            early = _object_text(value) if key in _ARGUMENTS else early
        if (yield from feed.expect(",", "}")) == "}":
            break
    if not is_whole:
        feed.begin(name)
        feed.grow(early)
    feed.end()


def call_objects(feed: Feed, separators: tuple[str, ...] = ()) -> Steps[None]:
    """One of them, a list of them, or several with separators between."""
    if (yield from feed.upcoming()) != "[":
        yield from call_object(feed)
        while separators and (yield from feed.next_mark(*separators)):
            yield from call_object(feed)
        return
    yield from feed.expect("[")
    while True:
        yield from call_object(feed)
        if (yield from feed.expect(",", "]")) == "]":
            return


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Calls as JSON objects behind a mark. bare: what they begin with where they are the whole
    answer, without the mark."""

    opens: tuple[str, ...]
    closes: tuple[str, ...] = ()
    separators: tuple[str, ...] = ()
    bare: str = ""

    def read(self, feed: Feed, mark: str) -> Steps[None]:
        yield from call_objects(feed, self.separators)
        if self.closes:
            yield from feed.close(*self.closes)


@dataclass(frozen=True, slots=True)
class NamedCalls:
    """Calls whose name stands before their arguments. begin: stands before each call of a section; kind: what may stand
    between it and the name. name_end: what the arguments follow. end, close: of a call, of the section."""

    opens: tuple[str, ...]
    begin: str
    name_end: tuple[str, ...]
    end: tuple[str, ...]
    close: str
    kind: str = ""
    fence: str = ""
    read_name: Callable[[str], tuple[str, str | None]] = lambda text: (text, None)
    bare: str = ""

    def read(self, feed: Feed, mark: str) -> Steps[None]:
        if mark != self.begin:
            yield from feed.expect(self.begin)
        yield from self._call(feed)
        while (yield from feed.next_mark(self.begin)):
            yield from self._call(feed)
        yield from feed.close(self.close)

    def _call(self, feed: Feed) -> Steps[None]:
        if self.kind:
            yield from feed.name_until(self.kind)
        text, _ = yield from feed.name_until(*self.name_end)
        feed.begin(*self.read_name(text))
        if self.fence:
            yield from feed.next_mark(self.fence + "json", self.fence)
        yield from arguments(feed)
        feed.end()
        if self.fence:
            yield from feed.close(self.fence)
        yield from feed.close(*self.end)


@dataclass(frozen=True, slots=True)
class MistralCalls:
    """[TOOL_CALLS][{"name": ..., "arguments": ...}], or since version 11 [TOOL_CALLS]name[ARGS]{...} for each call."""

    opens: tuple[str, ...] = ("[TOOL_CALLS]",)
    bare: str = ""

    def read(self, feed: Feed, mark: str) -> Steps[None]:
        if (yield from feed.upcoming()) in ("[", "{"):
            yield from call_objects(feed)
            return
        name, end = yield from feed.name_until("[ARGS]", "[CALL_ID]", "{")
        given_id: str | None = None
        if end == "[CALL_ID]":
            given_id, end = yield from feed.name_until("[ARGS]", "{")
        feed.begin(name, given_id)
        if end == "{":
            feed.put_back(end)
        yield from arguments(feed)
        feed.end()
