"""How the answers of one chat call are read: thoughts, content and calls, from their text to OpenAI's fields.

<think>Easy.</think><tool_call>{"name": "add", ...      the engine's text, whole or in pieces
reasoning "Easy."   tool_calls [{"function": ...}]      the answer's message, or a stream's deltas
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.server.answer_bodies import ChatMessage, FunctionCalled, ToolCall
from octavo.server.tools import Tools
from octavo.text.answers.events import CallBegun, CallBroken, CallEnded, CallGrown, Event, Said, Thought
from octavo.text.answers.formats import CallFormat
from octavo.text.answers.parser import Answer, AnswerParser, answer_of
from octavo.text.answers.style import AnswerStyle
from octavo.text.answers.thinking import ThoughtState

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How one call's answers are read. calls: the format of their calls; None: they hold none. widths: how many
    characters begin in each token. has_form: the request has a response_format."""

    style: AnswerStyle
    state: ThoughtState
    tools: Tools | None
    calls: CallFormat | None
    widths: Mapping[int, int]
    has_reasoning: bool
    has_form: bool

    def parser(self) -> AnswerParser:
        functions: Mapping[str, Mapping[str, Any]] = {} if self.tools is None else self.tools.functions
        most = None if self.tools is None else self.tools.max_calls
        return AnswerParser(self.style.reader(self.state, self.calls), functions, most)

    def read(self, text: str, token_ids: Sequence[int]) -> Answer:
        """A whole answer."""
        events = AnswerEvents(self)
        return answer_of(events.add(text, token_ids, is_end=True), events.num_thought_tokens)

    def message(self, answer: Answer) -> ChatMessage:
        message = ChatMessage(content=answer.content or (None if answer.calls else ""))
        if answer.reasoning and self.has_reasoning:
            message.reasoning = message.reasoning_content = answer.reasoning
        if answer.calls:
            message.tool_calls = [
                ToolCall(id=self.call_id(one.given_id), function=FunctionCalled(name=one.name, arguments=one.arguments))
                for one in answer.calls
            ]
        return message

    def call_id(self, given: str | None, before: str = "chatcmpl-tool-") -> str:
        """Mistral's templates take ids of nine letters only."""
        if given is not None:
            return given
        number = uuid.uuid4()
        if self.style.calls == "mistral":
            return "".join(_LETTERS[byte % len(_LETTERS)] for byte in number.bytes[:9])
        return f"{before}{number.hex}"


class AnswerEvents:
    """One answer as it is read, piece by piece."""

    def __init__(self, reading: Reading) -> None:
        self._parser = reading.parser()
        self._widths = reading.widths
        self._token_ids: list[int] = []

    def add(self, text: str, token_ids: Sequence[int], is_end: bool) -> list[Event]:
        """What the next piece adds."""
        self._token_ids += token_ids
        events = self._parser.push(text)
        return [*events, *self._parser.finish()] if is_end else events

    @property
    def num_thought_tokens(self) -> int:
        return self._parser.num_thought_tokens(self._token_ids, self._widths)


class StreamedAnswer:
    """One choice of a stream as it is read."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._events = AnswerEvents(reading)
        self.has_calls = False

    @property
    def num_thought_tokens(self) -> int:
        return self._events.num_thought_tokens

    def delta(self, text: str, token_ids: Sequence[int], is_end: bool) -> dict[str, Any]:
        """What a piece of the text adds to the message."""
        delta: dict[str, Any] = {}
        calls: dict[int, dict[str, Any]] = {}
        for event in self._events.add(text, token_ids, is_end):
            self._add(event, delta, calls)
        if calls:
            delta["tool_calls"] = list(calls.values())
        return delta

    def _add(self, event: Event, delta: dict[str, Any], calls: dict[int, dict[str, Any]]) -> None:
        match event:
            case Thought(text):
                if self._reading.has_reasoning:
                    for name in ("reasoning", "reasoning_content"):
                        delta[name] = delta.get(name, "") + text
            case Said(text):
                delta["content"] = delta.get("content", "") + text
            case CallBegun(index, name, given_id):
                function = {"name": name, "arguments": ""}
                calls[index] = {
                    **{"index": index, "id": self._reading.call_id(given_id), "type": "function"},
                    "function": function,
                }
            case CallGrown(index, text):
                calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                calls[index]["function"]["arguments"] += text
            case CallEnded():
                self.has_calls = True
            case CallBroken():
                pass  # what was sent of it stays; its text follows as content
