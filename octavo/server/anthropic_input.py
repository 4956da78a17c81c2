"""An Anthropic request as the chat that it stands for: blocks become messages, tools OpenAI's tools.

{"type": "tool_use", "name": "f", "input": {...}}           the assistant's tool_calls
{"type": "tool_result", "tool_use_id": ..., "content": ...}  a message of role tool
{"type": "thinking", "thinking": ...}                       the assistant's reasoning
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo.server.anthropic_protocol import AnthropicMessage, CountTokensRequest
from octavo.server.api_errors import ApiError, bad_field
from octavo.server.prompts import check_messages
from octavo.server.protocol import ChatCompletionRequest, Content
from octavo.server.settings import ServerSettings
from octavo.server.tools import asked_tools
from octavo.shown import shown

#: accepted keys of blocks and tools: hints for a cache that needs none here, and keys that answers have
_NO_EFFECT = frozenset({"cache_control", "citations", "caller"})
_KEYS = {
    "text": frozenset({"type", "text"}),
    "tool_use": frozenset({"type", "id", "name", "input"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error"}),
    "thinking": frozenset({"type", "thinking", "signature"}),
}
_OF_ROLE = {"user": ("text", "tool_result"), "assistant": ("text", "tool_use", "thinking")}
_TOOL_KEYS = frozenset({"type", "name", "description", "input_schema", "strict"})


def conversation_of(asked: CountTokensRequest, settings: ServerSettings) -> ChatCompletionRequest:
    """A last message by the assistant begins the answer. Raises ApiError."""
    messages = [one for index, message in enumerate(asked.messages) for one in _messages(index, message)]
    check_messages(messages, settings)
    is_begun = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    if asked.system is not None:
        messages.insert(0, {"role": "system", "content": _text("system", asked.system)})
    choice, is_parallel = _tool_choice(asked.tool_choice)
    thinks = _thinks(asked.thinking)
    chat = ChatCompletionRequest(
        messages=messages,
        add_generation_prompt=not is_begun,
        continue_final_message=is_begun,
        tools=None if asked.tools is None else [_tool(f"tools[{i}]", tool) for i, tool in enumerate(asked.tools)],
        tool_choice=choice,
        parallel_tool_calls=is_parallel,
        chat_template_kwargs=None if thinks is None else {"enable_thinking": thinks, "thinking": thinks},
        include_reasoning=thinks,
    )
    try:
        asked_tools(chat.tools, chat.tool_choice, chat.parallel_tool_calls)
    except ApiError as error:
        error.message = error.message.replace(".function.parameters", ".input_schema").replace(".function", "")
        raise
    return chat


def thought_budget(asked: CountTokensRequest) -> int | None:
    return None if asked.thinking is None else asked.thinking.get("budget_tokens")


def _thinks(thinking: Mapping[str, Any] | None) -> bool | None:
    """None: as the model does by itself."""
    if thinking is None:
        return None
    kind, budget = thinking.get("type"), thinking.get("budget_tokens")
    if kind not in ("enabled", "disabled", "adaptive") or not thinking.keys() <= {"type", "budget_tokens", "display"}:
        problem = f"is {shown(thinking)}, allowed is a type (enabled, disabled, adaptive) and budget_tokens"
        raise bad_field("thinking", problem)
    if budget is not None and (kind != "enabled" or isinstance(budget, bool) or not isinstance(budget, int)):
        raise bad_field("thinking.budget_tokens", f"is {shown(budget)}, allowed is a number beside the type enabled")
    return None if kind == "adaptive" else kind == "enabled"


def _tool(where: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type", "custom") not in ("custom", None):
        kind = shown(tool["type"])
        raise bad_field(f"{where}.type", f"is {kind}, allowed is custom: tools run where the client is")
    if more := sorted(tool.keys() - _TOOL_KEYS - _NO_EFFECT):
        raise bad_field(where, f"has the key {shown(more[0])}, allowed are {', '.join(sorted(_TOOL_KEYS))}")
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
        "strict": tool.get("strict"),
    }
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _tool_choice(choice: Mapping[str, Any] | None) -> tuple[str | dict[str, Any] | None, bool | None]:
    """-> OpenAI's tool_choice, parallel_tool_calls."""
    if choice is None:
        return None, None
    kind, single = choice.get("type"), choice.get("disable_parallel_tool_use")
    kinds: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}
    kinds["tool"] = {"type": "function", "function": {"name": choice.get("name")}}
    if not isinstance(kind, str) or kind not in kinds or not isinstance(single, bool | None):
        problem = f"is {shown(choice)}, allowed is a type (auto, any, none, or tool and a name)"
        raise bad_field("tool_choice", f"{problem}, and disable_parallel_tool_use, true or false")
    return kinds[kind], None if single is None else not single


def _messages(index: int, message: AnthropicMessage) -> list[dict[str, Any]]:
    """Most messages are one; each result of a tool is one of its own."""
    where = f"messages[{index}]"
    if message.role not in _OF_ROLE:
        raise bad_field(f"{where}.role", f"is {shown(message.role)}, allowed are user and assistant; see system")
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    for at, block in enumerate(message.content):
        _check_block(f"{where}.content[{at}]", block, _OF_ROLE[message.role])
    if message.role == "assistant":
        return [_assistant(message.content)]
    return _user(f"{where}.content", message.content)


def _check_block(where: str, block: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    kind = block.get("type")
    if not isinstance(kind, str) or kind not in allowed:
        problem = f"is a block of type {shown(kind)}, allowed are blocks of type {', '.join(allowed)}"
        raise bad_field(where, problem)
    if more := sorted(set(block) - _KEYS[kind] - _NO_EFFECT):
        raise bad_field(where, f"has the key {shown(more[0])}, allowed are {', '.join(sorted(_KEYS[kind]))}")
    needs: dict[str, tuple[type, ...]] = {
        "text": (str,),
        "thinking": (str,),
        "name": (str,),
        "id": (str,),
        "input": (dict,),
        "tool_use_id": (str,),
    }
    for key in sorted(_KEYS[kind] & needs.keys()):
        if not isinstance(block.get(key), needs[key]):
            wanted = "an object" if key == "input" else "a text"
            raise bad_field(where, f"is a block of type {kind!r} whose {key} is {shown(block.get(key))}, not {wanted}")


def _assistant(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {"role": "assistant", "content": _of_kind(blocks, "text")}
    if thoughts := _of_kind(blocks, "thinking"):
        made["reasoning"] = thoughts
    calls = [
        {
            **{"id": block["id"], "type": "function"},
            "function": {"name": block["name"], "arguments": json.dumps(block["input"], ensure_ascii=False)},
        }
        for block in blocks
        if block["type"] == "tool_use"
    ]
    return {**made, "tool_calls": calls} if calls else made


def _of_kind(blocks: list[dict[str, Any]], kind: str) -> str:
    return "\n".join(block[kind] for block in blocks if block["type"] == kind)


def _user(where: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for at, block in enumerate(blocks):
        if block["type"] == "tool_result":
            text = _text(f"{where}[{at}].content", block.get("content") or "")
            text = f"Error: {text}" if block.get("is_error") else text
            made.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": text})
        elif made and made[-1]["role"] == "user":
            made[-1]["content"] += "\n" + block["text"]
        else:
            made.append({"role": "user", "content": block["text"]})
    return made or [{"role": "user", "content": ""}]


def _text(where: str, content: Content) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_field(where, f"is {shown(content)}, allowed is a text, or a list of text blocks")
    for index, block in enumerate(content):
        if not isinstance(block, dict):
            raise bad_field(f"{where}[{index}]", f"is {shown(block)}, allowed are text blocks")
        _check_block(f"{where}[{index}]", block, ("text",))
    return "\n".join(block["text"] for block in content)
