"""What Ollama's clients say as a chat: calls without ids, results by their functions' names, think for the thoughts.

{"role": "assistant", "thinking": "Hm.", "tool_calls": [{"function": {"name": "add", "arguments": {...}}}]}
{"role": "tool", "tool_name": "add", "content": "3"}       the result of the first call of add without one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.server.api_errors import ApiError, bad_field
from octavo.server.ollama_protocol import OllamaRequest
from octavo.server.prompts import has_thought_switch
from octavo.server.protocol import ChatCompletionRequest
from octavo.server.serving import Serving
from octavo.shown import shown

_EFFORTS = ("low", "medium", "high")


def conversation_of(
    asked: OllamaRequest,
    serving: Serving,
    messages: Sequence[Mapping[str, Any]],
    tools: list[dict[str, Any]] | None = None,
) -> ChatCompletionRequest:
    """An answer that the last message begins is continued. Raises ApiError."""
    is_begun = messages[-1].get("role") == "assistant" and not messages[-1].get("tool_calls")
    return ChatCompletionRequest(
        messages=_with_ids(messages),
        tools=tools or None,
        reasoning_effort=_effort(asked.think, serving),
        add_generation_prompt=not is_begun,
        continue_final_message=is_begun,
    )


def in_its_words(error: ApiError) -> ApiError:
    """An error about the chat, as one about the call."""
    error.message = error.message.replace("reasoning_effort", "think", 1)
    return error


def _effort(think: bool | str | None, serving: Serving) -> str | None:
    """As reasoning_effort. None: as the model does by itself."""
    if think is None or think is False:
        return None if think is None else "none"
    if isinstance(think, str) and think not in _EFFORTS:
        raise bad_field("think", f"is {shown(think)}, allowed are true, false, {', '.join(_EFFORTS)}")
    if not serving.answers.can_think:
        raise bad_field("think", f"is {shown(think)}, but this model does not support thinking: leave it out")
    if isinstance(think, str):
        return think
    template = serving.tokenizer("a conversation").chat_template or ""
    return "medium" if has_thought_switch(template) else None


def _with_ids(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's messages. Ids are nine letters, as some templates want them."""
    made: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []  # id and function of those without a result
    num_calls = 0
    for index, message in enumerate(messages):
        one = {key: value for key, value in message.items() if key not in ("thinking", "tool_name")}
        if message.get("thinking"):
            one["reasoning"] = message["thinking"]
        if message.get("tool_calls"):
            one["tool_calls"] = calls = []
            for call in _calls(index, message["tool_calls"]):
                known_as = f"call{num_calls:05}"
                num_calls += 1
                open_calls.append((known_as, call["name"]))
                calls.append({"id": known_as, "type": "function", "function": call})
        elif message.get("role") == "tool":
            name = message.get("tool_name") or message.get("name")
            found = next((call for call in open_calls if name in (None, call[1])), None)
            if found is not None:
                open_calls.remove(found)
                one |= {"tool_call_id": found[0], "name": found[1]}
            elif name is not None:
                one["name"] = name
        made.append(one)
    return made


def _calls(index: int, given: Any) -> list[dict[str, Any]]:
    """The functions of a message's calls."""
    where = f"messages[{index}].tool_calls"
    if not isinstance(given, list):
        raise bad_field(where, f"is {shown(given)}, allowed is a list of calls")
    functions = [call.get("function") if isinstance(call, dict) else None for call in given]
    for place, function in enumerate(functions):
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            problem = "allowed is {'function': {'name': ..., 'arguments': {...}}}"
            raise bad_field(f"{where}[{place}]", f"is {shown(given[place])}, {problem}")
    return [{"name": one["name"], "arguments": one.get("arguments") or {}} for one in functions if one is not None]
