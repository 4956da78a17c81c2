"""What a chat call asks of an answer's text: how it is to be read, and which grammar holds it to that."""

from __future__ import annotations

from dataclasses import replace

from octavo.observe.logging import LOGGER
from octavo.sampling_params import SamplingParams
from octavo.server.api_errors import bad_field
from octavo.server.protocol import ConversationRequest
from octavo.server.reading import Reading
from octavo.server.settings import ServerSettings
from octavo.server.tools import Tools, asked_tools
from octavo.text.answers.constrained import calls_grammar, forced_format, form_or_calls, strict_grammar
from octavo.text.answers.formats import FORMATS, CallFormat
from octavo.text.answers.style import answer_style
from octavo.text.answers.thinking import ThoughtState
from octavo.text.tokenizer import Tokenizer

_NOT_STRICT = (
    "functions are strict and tool_choice is auto, but calls in the format %s cannot be held to a schema where the "
    "model decides whether it calls: their arguments may break it. tool_choice required, or a named function, holds "
    "them to it (this is told once)"
)


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
