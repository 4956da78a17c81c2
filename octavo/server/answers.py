"""How the answers of one chat call are read: thoughts, content and calls, from their text to OpenAI's fields.

<think>Easy.</think><tool_call>{"name": "add", ...      the engine's text, whole or in pieces
reasoning "Easy."   tool_calls [{"function": ...}]      the answer's message, or a stream's deltas
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from octavo.observe.logging import LOGGER
from octavo.sampling_params import SamplingParams
from octavo.server.answer_bodies import ChatMessage, FunctionCalled, ToolCall
from octavo.server.api_errors import bad_field
from octavo.server.protocol import ConversationRequest
from octavo.server.settings import ServerSettings
from octavo.server.tools import Tools, asked_tools
from octavo.text.answers.constrained import calls_grammar, forced_format, form_or_calls, strict_grammar
from octavo.text.answers.events import CallBegun, CallBroken, CallEnded, CallGrown, Event, Said, Thought
from octavo.text.answers.formats import FORMATS, CallFormat
from octavo.text.answers.parser import Answer, AnswerParser, answer_of
from octavo.text.answers.style import AnswerStyle, answer_style
from octavo.text.answers.thinking import ThoughtState
from octavo.text.tokenizer import Tokenizer

_NOT_STRICT = (
    "functions are strict and tool_choice is auto, but calls in the format %s cannot be held to a schema where the "
    "model decides whether it calls: their arguments may break it. tool_choice required, or a named function, holds "
    "them to it (this is told once)"
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


class AnswerReader:
    """Knows how the served model writes."""

    def __init__(self, tokenizer: Tokenizer | None, settings: ServerSettings) -> None:
        templates = "" if tokenizer is None else "\n".join(tokenizer.chat_templates.values())
        self._tokenizer = tokenizer
        self._is_auto = settings.enable_auto_tool_choice
        self._style = answer_style(
            templates, settings.tool_call_parser, None if tokenizer is None else tokenizer.reasoning_parser
        )
        self._special = _special_tokens(tokenizer)
        self._has_warned = False  # that functions are strict in vain

    @property
    def can_think(self) -> bool:
        """Whether the model writes thoughts that can be told from its answers."""
        return self._style.thoughts is not None

    @property
    def can_call(self) -> bool:
        """Whether calls in its answers are read."""
        return self._style.calls is not None and self._is_auto

    def reading(self, asked: ConversationRequest, prompt: list[int], text_begun: str | None) -> Reading | None:
        """None: the text is the answer. text_begun: the message that the answer continues. Raises ApiError."""
        tools = asked_tools(asked.tools, asked.tool_choice, asked.parallel_tool_calls)
        calls = None if tools is None or tools.choice == "none" else self._format(tools)
        state = self._state(prompt, text_begun)
        if calls is None and state == "ended" and not self._style.is_harmony:
            return None
        return Reading(
            style=self._style,
            state=state,
            tools=None if calls is None else tools,
            calls=calls,
            widths={} if self._tokenizer is None else self._tokenizer.token_widths,
            has_reasoning=asked.include_reasoning is not False,
            has_form=asked.response_format is not None,
        )

    def params(self, params: SamplingParams, reading: Reading | None) -> SamplingParams:
        """With all tokens shown that the answer is read by, and calls forced where they must be made."""
        if reading is None:
            return params
        tools = reading.tools
        # harmony's content and calls follow different marks: its grammars of calls begin at once
        may_think = reading.state != "ended" and not (
            reading.style.is_harmony and tools is not None and tools.must_call
        )
        if tools is not None and tools.must_call:
            if params.structured_outputs is not None:
                problem = "asks for a call and the answer's form is set, allowed is one of the two"
                raise bad_field("tool_choice", problem)
            params = params.replace(structured_outputs={"grammar": self._grammar(tools)})
        elif tools is not None and tools.strict and params.structured_outputs is None and not params.use_beam_search:
            grammar = strict_grammar(self._style.calls, tools.functions, tools.strict, self._special)
            params = params if grammar is None else params.replace(structured_outputs={"grammar": grammar})
            if grammar is None and not self._has_warned:
                self._has_warned = True
                LOGGER.warning(_NOT_STRICT, self._style.calls)
        elif tools is not None and reading.has_form and params.structured_outputs and not params.use_beam_search:
            allowed = (tools.functions, tools.strict, tools.max_calls, self._special)
            grammar = form_or_calls(self._style.calls, *allowed, params.structured_outputs)
            params = params if grammar is None else params.replace(structured_outputs={"grammar": grammar})
        if params.structured_outputs is not None:
            params = params.replace(structured_outputs=replace(params.structured_outputs, after_thoughts=may_think))
        marks = reading.style.marks(reading.calls is not None)
        return params.replace(skip_special_tokens=False) if self._special.keys() & set(marks) else params

    def _grammar(self, tools: Tools) -> str:
        functions = tools.functions if tools.named is None else {tools.named: tools.functions[tools.named]}
        return calls_grammar(self._style.calls, functions, tools.strict, tools.max_calls, self._special)

    def _format(self, tools: Tools) -> CallFormat | None:
        name = self._style.calls
        if tools.must_call:
            return forced_format(name)
        if not self._is_auto:
            return None
        if name is None:
            raise bad_field(
                "tools",
                "are sent, but this model's chat template shows no format of calls that is known here: start the "
                "server with --tool-call-parser, or set tool_choice to required",
            )
        return FORMATS.get(name, FORMATS["hermes"])

    def _state(self, prompt: list[int], text_begun: str | None) -> ThoughtState:
        marks = self._style.thought_marks
        if marks is None or self._tokenizer is None:
            return "ended"
        if text_begun is not None:
            return "begun" if text_begun.rfind(marks.begin) > text_begun.rfind(marks.end) else "ended"
        return self._tokenizer.thought_state(prompt)


def _special_tokens(tokenizer: Tokenizer | None) -> dict[str, int]:
    """Tokens that the text hides, as a rule -> their ids."""
    if tokenizer is None:
        return {}
    ids = tokenizer.all_special_ids
    return {token: token_id for token_id, token in zip(ids, tokenizer.all_special_tokens, strict=True) if token}


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
