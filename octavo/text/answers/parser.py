"""AnswerParser: from the pieces of an answer's text to its thoughts, its content and its calls."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

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

    def num_thought_tokens(self, token_ids: Sequence[int], widths: Mapping[int, int]) -> int:
        """How many of the answer's tokens begin in its thoughts, which are without the marks around them. widths: how
        many characters begin in each token."""
        if not self._feed.thoughts:
            return 0
        begins = [0, *accumulate(map(widths.__getitem__, token_ids))][:-1]
        return sum(bisect_left(begins, end) - bisect_left(begins, begin) for begin, end in self._feed.thoughts)


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
    num_thought_tokens: int = 0


def num_thoughts(answers: Iterable[Answer | None]) -> int | None:
    """Tokens of the thoughts of all. None: none of them was read for thoughts."""
    counts = [one.num_thought_tokens for one in answers if one is not None]
    return sum(counts) if counts else None


def answer_of(events: list[Event], num_thought_tokens: int = 0) -> Answer:
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
    return Answer("".join(thoughts), "".join(said), list(calls.values()), num_thought_tokens)
