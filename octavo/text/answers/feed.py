"""Feed: an answer's text as it comes, read by a parser that is written as if all of it were there.

    push("... <tool_c")   the parser runs until it needs more text, and waits there (it is a generator)
    push("all>{...")      it goes on

A parser takes text through the methods here, and tells what it read: `think`, `say`, `begin`, `grow`, `end`. What it
takes of a call is also kept as it was written, so that a broken call can become content.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any, TypeVar

from octavo.text.answers.events import CallBegun, CallBroken, CallEnded, CallGrown, Event, Said, Thought

T = TypeVar("T")
Steps = Generator[None, None, T]
Schemas = Mapping[str, Mapping[str, Any]]  # the parameters of each function

#: characters of a name, a key or a marker between two known texts
MAX_NAME = 256
_SPACE = re.compile(r"\s*")


class BrokenCall(Exception):  # noqa: N818  never leaves the parser
    """What was taken for a call is none, or ends early."""


class Feed:
    """Owner of the text that is not yet read, and of the events not yet given out."""

    def __init__(self, functions: Schemas, max_calls: int | None = None) -> None:
        """functions: those that may be called. max_calls: further calls are dropped."""
        self.functions = functions
        self.text = ""
        self.has_ended = False
        self._events: list[Event] = []
        self._max_calls = max_calls
        self._num_calls = self._num_whole = 0
        self._open: int | None = None
        self._space: str | None = None  # white space that may stand before a call; None: text has not begun
        self._raw: list[str] | None = None
        self._is_extra = False
        self._num_taken = 0
        #: where thoughts stand in the answer's text: their first characters, and those behind their last
        self.thoughts: list[tuple[int, int]] = []

    # What the owner of the answer calls

    def push(self, text: str) -> None:
        self.text = self.text + text if self.text else text

    def taken(self) -> list[Event]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    # What a parser tells

    def think(self, text: str) -> None:
        """A text that was just taken."""
        if text:
            self._events.append(Thought(text))
            begin, end = self._num_taken - len(text), self._num_taken
            if self.thoughts and self.thoughts[-1][1] == begin:
                begin, _ = self.thoughts.pop()
            self.thoughts.append((begin, end))

    def say(self, text: str) -> None:
        """White space is held back, since a call may follow, before and behind which it means nothing."""
        if not text:
            return
        kept = text.rstrip()
        if kept:
            self._events.append(Said((self._space or "") + kept))
            self._space = text[len(kept) :]
        else:
            self._space = (self._space or "") + text

    def finish(self) -> None:
        if self._space and not self._num_whole:
            self._events.append(Said(self._space))
        self._space = None

    def open(self, mark: str) -> None:
        """What follows may be a call; it began with this text."""
        self._raw = [self._space or "", mark]
        self._space = None

    def shut(self) -> None:
        """What followed was calls."""
        self._raw = None

    def give_up(self) -> None:
        """It was no call, or a broken one."""
        raw, self._raw = self._raw or [], None
        self._is_extra = False
        if self._open is not None:
            self._events.append(CallBroken(self._open))
            self._open = None
        self.say("".join(raw))

    def begin(self, name: str, given_id: str | None = None) -> None:
        if name not in self.functions:
            raise BrokenCall
        self._is_extra = self._max_calls is not None and self._num_whole >= self._max_calls
        if not self._is_extra:
            self._open = self._num_calls
            self._num_calls += 1
            self._events.append(CallBegun(self._open, name, given_id))

    def grow(self, text: str) -> None:
        if text and not self._is_extra:
            assert self._open is not None, "a call has begun"
            self._events.append(CallGrown(self._open, text))

    def end(self) -> None:
        """The call is whole: if a later one is broken, this one is not in its text."""
        if self._open is not None:
            self._events.append(CallEnded(self._open))
            self._num_whole += 1
        self._open, self._is_extra = None, False
        if self._raw is not None:
            self._raw = []

    # How a parser reads

    def take(self, num: int) -> str:
        taken, self.text = self.text[:num], self.text[num:]
        self._num_taken += num
        if self._raw is not None:
            self._raw.append(taken)
        return taken

    def put_back(self, text: str) -> None:
        """What was taken last comes next."""
        self.text = text + self.text
        self._num_taken -= len(text)
        if self._raw is not None and self._raw.pop() != text:
            raise AssertionError("only what was taken last")

    def until(self, marks: Collection[str], hand: Callable[[str], None]) -> Steps[str]:
        """Hand over all text before the first of the marks. -> the mark, which is taken too; "" at the answer's end."""
        while True:
            found = [(at, -len(mark), mark) for mark in marks if (at := self.text.find(mark)) >= 0]
            if found:
                at, _, mark = min(found)
                hand(self.take(at))
                return self.take(len(mark))
            held = 0 if self.has_ended else max((_begun(self.text, mark) for mark in marks), default=0)
            if held < len(self.text):
                hand(self.take(len(self.text) - held))
            if self.has_ended:
                return ""
            yield

    def name_until(self, *marks: str) -> Steps[tuple[str, str]]:
        """A short text up to the first of the marks. -> the text and the mark."""
        parts: list[str] = []
        size = 0

        def add(piece: str) -> None:
            nonlocal size
            parts.append(piece)
            size += len(piece)
            if size > MAX_NAME:
                raise BrokenCall

        mark = yield from self.until(marks, add)
        if not mark:
            raise BrokenCall
        return "".join(parts).strip(), mark

    def space(self) -> Steps[str]:
        return (yield from self.match(_SPACE))

    def accept(self, *marks: str) -> Steps[str]:
        """-> the longest of the marks that comes next, which is taken; "" if none does."""
        while not self.has_ended and any(mark.startswith(self.text) for mark in marks if mark != self.text):
            yield
        found = max((mark for mark in marks if self.text.startswith(mark)), key=len, default="")
        return self.take(len(found))

    def next_mark(self, *marks: str) -> Steps[str]:
        """`accept` behind white space."""
        yield from self.space()
        return (yield from self.accept(*marks))

    def close(self, *marks: str) -> Steps[str]:
        """`next_mark` of what closes calls. The answer's end closes them too, wherever it cuts a mark."""
        mark = yield from self.next_mark(*marks)
        if not mark and self.has_ended and any(one.startswith(self.text) for one in marks):
            self.take(len(self.text))
        return mark

    def expect(self, *marks: str) -> Steps[str]:
        mark = yield from self.next_mark(*marks)
        if not mark:
            raise BrokenCall
        return mark

    def upcoming(self) -> Steps[str]:
        """The next character behind white space, which is not taken; "" at the answer's end."""
        yield from self.space()
        return self.text[:1]

    def begins_with(self, mark: str) -> Steps[bool]:
        """Whether the text goes on so; nothing is taken."""
        while len(self.text) < len(mark) and mark.startswith(self.text) and not self.has_ended:
            yield
        return self.text.startswith(mark)

    def match(self, pattern: re.Pattern[str]) -> Steps[str]:
        """The longest text that the pattern matches, which may be empty; the pattern matches characters one by one."""
        parts: list[str] = []
        while True:
            found = pattern.match(self.text)
            width = 0 if found is None else found.end()
            parts.append(self.take(width))
            if self.text or self.has_ended:
                return "".join(parts)
            yield


def _begun(text: str, mark: str) -> int:
    """How many of the last characters may be the beginning of the mark."""
    for num in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:num]):
            return num
    return 0
