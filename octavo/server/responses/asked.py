"""A request for a response as the chat that it stands for, and errors about that chat in the request's own words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.server.api_errors import OR_CUT, ApiError, bad_field
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.responses.conversation import messages_of
from octavo.server.responses.protocol import SAMPLING, Item, ResponsesRequest, TextOptions
from octavo.server.tools import asked_tools
from octavo.shown import shown

LOGPROBS = "message.output_text.logprobs"
#: what `include` may name: the others are about items that never occur, or that need no such request
INCLUDABLE = (
    *(LOGPROBS, "reasoning.encrypted_content", "message.input_image.image_url", "file_search_call.results"),
    *("web_search_call.results", "web_search_call.action.sources", "computer_call_output.output.image_url"),
    "code_interpreter_call.outputs",
)
_SUMMARIES = ("auto", "detailed")
_RUNS_NONE = "this server runs no tools; declare a function that your client runs"
_NO_CUSTOM = "declare a function with one parameter that is a text"
_TOOL_KEYS = ("name", "description", "parameters", "strict")
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_MAX_TOP_LOGPROBS = 20
#: fields that a request and its chat share
_SHARED = (
    *SAMPLING,
    *("logit_bias", "structured_outputs", "chat_template_kwargs", "priority", "request_id", "cache_salt"),
    "parallel_tool_calls",
)
#: the chat's fields -> the request's
_FIELDS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


def places_of(asked: ResponsesRequest, earlier: Sequence[Item]) -> list[tuple[str, Item]]:
    """All items of the conversation, each with its place in the request. earlier: of the responses that it
    continues."""
    places = [(f"previous_response_id[{index}]", item) for index, item in enumerate(earlier)]
    return places + [(f"input[{index}]", item) for index, item in enumerate(input_items(asked))]


def chat_of(asked: ResponsesRequest, places: Sequence[tuple[str, Item]]) -> ChatCompletionRequest:
    """Raises ApiError."""
    messages = messages_of(places)
    if asked.instructions is not None:
        messages.insert(0, {"role": "system", "content": asked.instructions})
    has_logprobs = LOGPROBS in (asked.include or ())
    tools, choice = _tools(asked)
    return ChatCompletionRequest(
        **{name: getattr(asked, name) for name in _SHARED},
        model=asked.model,
        messages=messages,
        tools=tools,
        tool_choice=choice,
        response_format=_form(asked.text or TextOptions()),
        reasoning_effort=None if asked.reasoning is None else asked.reasoning.effort,
        logprobs=has_logprobs or None,
        top_logprobs=asked.top_logprobs if has_logprobs else None,
        max_completion_tokens=asked.max_output_tokens,
    )


def input_items(asked: ResponsesRequest) -> list[Item]:
    if isinstance(asked.input, str):
        return [{"type": "message", "role": "user", "content": asked.input}]
    return asked.input


def check_fields(asked: ResponsesRequest) -> None:
    """Those that the chat has not. Raises ApiError."""
    if asked.input == []:
        raise bad_field("input", "is [], allowed is a text, or at least one item")
    if asked.truncation not in (None, "auto", "disabled"):
        raise bad_field("truncation", f"is {shown(asked.truncation)}, allowed are auto and disabled")
    for place, name in enumerate(asked.include or ()):
        if name not in INCLUDABLE:
            raise bad_field(f"include[{place}]", f"is {shown(name)}, allowed are {', '.join(INCLUDABLE)}")
    num = asked.top_logprobs
    if num is not None and not 0 <= num <= _MAX_TOP_LOGPROBS:
        raise bad_field("top_logprobs", f"is {num}, allowed is 0 to {_MAX_TOP_LOGPROBS}")
    if num and LOGPROBS not in (asked.include or ()):
        raise bad_field("top_logprobs", f"is {num} and include has not {LOGPROBS}, allowed is both or neither")
    if asked.max_tool_calls is not None and asked.max_tool_calls < 0:
        raise bad_field("max_tool_calls", f"is {asked.max_tool_calls}, allowed is 0 or more")
    if asked.cache_salt == "":
        raise bad_field("cache_salt", "is '', allowed are strings of at least one character")
    if asked.background and asked.store is False:
        raise bad_field("background", "is true and store is false: a response is read later only if it is stored")
    if asked.stream_options is not None:
        _check_stream_options(asked)
    _check_metadata(asked.metadata or {})
    summary(asked)


def summary(asked: ResponsesRequest) -> str | None:
    """The summary of thoughts that is asked for. Raises ApiError."""
    options = asked.reasoning
    found = None if options is None else options.summary or options.generate_summary
    if found is not None and found not in _SUMMARIES:
        problem = f"is {shown(found)}, allowed are {' and '.join(_SUMMARIES)}, which give the thoughts in full"
        raise bad_field("reasoning.summary", problem, "unsupported_parameter")
    return found


def in_its_words(error: ApiError, asked: ResponsesRequest) -> ApiError:
    """An error about the chat, as one about the request."""
    dropped = "" if asked.truncation == "auto" else ", or set truncation to auto, which drops its oldest items"
    error.message = error.message.replace(OR_CUT, dropped)
    for ours, theirs in _FIELDS.items():
        if error.message.startswith((f"{ours} ", f"{ours}.", f"{ours}[")):
            error.message = theirs + error.message.removeprefix(ours)
    error.message = error.message.replace("].function", "]").replace("text.format.json_schema", "text.format")
    error.param = None if error.param is None else _FIELDS.get(error.param, error.param).partition(".")[0]
    return error


def _check_stream_options(asked: ResponsesRequest) -> None:
    if not asked.stream:
        problem = "is set and stream is not, allowed is both or neither: set stream to true"
        raise bad_field("stream_options", problem)
    if asked.stream_options is not None and asked.stream_options.include_obfuscation:
        problem = "is true, which this engine does not support: leave it out"
        raise bad_field("stream_options.include_obfuscation", problem, "unsupported_parameter")


def _check_metadata(pairs: dict[str, str]) -> None:
    if len(pairs) > _MAX_PAIRS:
        raise bad_field("metadata", f"has {len(pairs)} keys, allowed are {_MAX_PAIRS}")
    for key, value in pairs.items():
        if len(key) > _MAX_KEY or len(value) > _MAX_VALUE:
            problem = f"are {len(key)} and {len(value)} characters, allowed are {_MAX_KEY} and {_MAX_VALUE}"
            raise bad_field("metadata", f"has a key {shown(key)}: it and its value {problem}")


def _form(text: TextOptions) -> dict[str, Any] | None:
    """text.format as a chat's response_format, which checks it."""
    if text.verbosity not in (None, "medium"):
        problem = f"is {shown(text.verbosity)}, which this engine does not support; allowed is medium"
        raise bad_field("text.verbosity", problem, "unsupported_parameter")
    if text.format is None or text.format.get("type") != "json_schema":
        return text.format
    schema = {key: value for key, value in text.format.items() if key != "type"}
    return {"type": "json_schema", "json_schema": schema}


def _tools(asked: ResponsesRequest) -> tuple[list[dict[str, Any]] | None, str | dict[str, Any] | None]:
    """-> the chat's tools and tool_choice."""
    tools = None if asked.tools is None else [_tool(f"tools[{i}]", one) for i, one in enumerate(asked.tools)]
    choice = asked.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        given = choice.get("tools")
        some = [_named(one) for one in given] if isinstance(given, list) else given
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": some}}
    elif isinstance(choice, dict):
        choice = _named(choice)
    asked_tools(tools, choice, asked.parallel_tool_calls)
    return tools, choice


def _named(choice: Any) -> dict[str, Any]:
    """A function's name in a chat's form."""
    if not isinstance(choice, dict) or choice.get("type") != "function":
        allowed = (
            "none, auto, required, {'type': 'function', 'name': ...} and {'type': 'allowed_tools', 'mode', 'tools'}"
        )
        raise bad_field("tool_choice", f"is {shown(choice)}, allowed are {allowed}")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _tool(where: str, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        instead = _NO_CUSTOM if tool.get("type") == "custom" else _RUNS_NONE
        problem = f"is {shown(tool.get('type'))}, allowed is function: {instead}"
        raise bad_field(f"{where}.type", problem, "unsupported_parameter")
    known = {key: tool[key] for key in _TOOL_KEYS if tool.get(key) is not None}
    if more := sorted(key for key in tool.keys() - {"type", *_TOOL_KEYS} if tool[key] not in (None, False)):
        raise bad_field(where, f"has the key {shown(more[0])}, allowed are type, {', '.join(_TOOL_KEYS)}")
    return {"type": "function", "function": known}
