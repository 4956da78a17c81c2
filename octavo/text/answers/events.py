"""What an answer consists of, in order: thoughts, text, and calls of functions that grow piece by piece."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of the content."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """index: its number among the answer's calls. given_id: where the model itself numbers its calls."""

    index: int
    name: str
    given_id: str | None = None


@dataclass(frozen=True, slots=True)
class CallGrown:
    """The next piece of a call's arguments, which are JSON once it has ended."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    index: int


@dataclass(frozen=True, slots=True)
class CallBroken:
    """The call cannot be read to its end; its text follows as content."""

    index: int


Event = Thought | Said | CallBegun | CallGrown | CallEnded | CallBroken
