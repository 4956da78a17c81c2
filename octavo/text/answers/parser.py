"""AnswerParser: from the pieces of an answer's text to its thoughts, its content and its calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from octavo.text.answers.events import CallBegun, CallBroken, CallEnded, CallGrown, Event, Said, Thought
from octavo.text.answers.feed import Feed, Schemas, Steps


class AnswerParser:
    """Reads one answer. read: goes through the whole of it; see formats.py."""

    def __init__(self, read: Callable[[Feed], Steps[None]], functions: Schemas, max_calls: int | None = None) -> None:
        self._feed = Feed(functions, max_calls)
        self._steps = read(self._feed)

    def push(self, text: str) -> list[Event]:
        """What the next piece of the text adds."""
        self._feed.push(text)
        next(self._steps, None)
        return self._feed.taken()

    def finish(self) -> list[Event]:
        """What is left when the answer has ended."""
        self._feed.has_ended = True
        next(self._steps, None)
        self._feed.finish()
        return self._feed.taken()


@dataclass(slots=True)
class FunctionCall:
    name: str
    arguments: str = ""
    given_id: str | None = None


@dataclass(slots=True)
class Answer:
    """A whole answer. A call that could not be read is part of the content."""

    reasoning: str = ""
    content: str = ""
    calls: list[FunctionCall] = field(default_factory=list)


def answer_of(events: list[Event]) -> Answer:
    """All events of an answer as one."""
    calls: dict[int, FunctionCall] = {}
    thoughts: list[str] = []
    said: list[str] = []
    for event in events:
        match event:
            case Thought(text):
                thoughts.append(text)
            case Said(text):
                said.append(text)
            case CallBegun(index, name, given_id):
                calls[index] = FunctionCall(name, "", given_id)
            case CallGrown(index, text):
                calls[index].arguments += text
            case CallBroken(index):
                del calls[index]
            case CallEnded():
                pass
    return Answer("".join(thoughts), "".join(said), list(calls.values()))
