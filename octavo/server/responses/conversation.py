"""From the items of a request's input to the messages of a chat.

{"role": "user", "content": [{"type": "input_text", ...}]}       a message
{"type": "reasoning", ...}  {"type": "function_call", ...}       one message of the assistant: thoughts, content, calls
{"type": "function_call_output", "call_id": ..., "output": ...}  a message of role tool
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.server.api_errors import bad_field
from octavo.server.responses.protocol import Item
from octavo.shown import shown

_ROLES = ("user", "assistant", "system", "developer")
#: keys of each type of item and of text; those that change nothing come from answers that are sent back
_KEYS = {
    "message": frozenset({"type", "id", "role", "content", "status", "phase"}),
    "function_call": frozenset({"type", "id", "call_id", "name", "arguments", "status"}),
    "function_call_output": frozenset({"type", "id", "call_id", "output", "status"}),
    "reasoning": frozenset({"type", "id", "summary", "content", "encrypted_content", "status"}),
}
_TEXTS = {
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id",),
    "reasoning": (),
    "message": (),
}
_PART_KEYS = frozenset({"type", "text", "annotations", "logprobs"})
_PARTS = ("input_text", "output_text", "text", "refusal")
_THOUGHTS = ("reasoning_text", "summary_text")


def messages_of(items: Sequence[tuple[str, Item]]) -> list[dict[str, Any]]:
    """items: each with its place in the request, for errors. Raises ApiError."""
    turns = _Turns()
    for where, item in items:
        kind = item.get("type") or "message"
        if not isinstance(kind, str) or kind not in _KEYS:
            raise bad_field(f"{where}.type", f"is {shown(kind)}, allowed are {', '.join(_KEYS)}: send the text itself")
        _check_keys(where, item, _KEYS[kind])
        for key in _TEXTS[kind]:
            if not isinstance(item.get(key), str):
                raise bad_field(f"{where}.{key}", f"is {shown(item.get(key))}, allowed is a text")
        turns.add(where, kind, item)
    return turns.messages


class _Turns:
    """The messages so far. calls: the names of the functions that were called, by the calls' ids."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._calls: dict[str, str] = {}

    def add(self, where: str, kind: str, item: Item) -> None:
        if kind == "reasoning":
            text = _texts(f"{where}.content", item.get("content") or item.get("summary") or [], _THOUGHTS, "\n")
            if text:
                self._assistants("reasoning" if self._has("content", "tool_calls") else "")["reasoning"] = text
        elif kind == "function_call":
            self._calls[item["call_id"]] = item["name"]
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            self._assistants("").setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            self.messages.append(self._result(where, item))
        else:
            self._message(where, item)

    def _message(self, where: str, item: Item) -> None:
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise bad_field(f"{where}.role", f"is {shown(role)}, allowed are {', '.join(_ROLES)}")
        text = _texts(f"{where}.content", item.get("content"), _PARTS, "\n")
        if role != "assistant":
            self.messages.append({"role": role, "content": text})
            return
        is_next = self._has("content") and not self._has("tool_calls")
        turn = self._assistants("content" if is_next else "")
        turn["content"] = f"{turn['content']}\n{text}" if turn.get("content") else text

    def _result(self, where: str, item: Item) -> dict[str, Any]:
        call_id = item["call_id"]
        if call_id not in self._calls:
            problem = f"is {shown(call_id)}, allowed is the call_id of a function_call before it"
            raise bad_field(f"{where}.call_id", problem)
        text = _texts(f"{where}.output", item.get("output"), _PARTS, "\n")
        return {"role": "tool", "tool_call_id": call_id, "name": self._calls[call_id], "content": text}

    def _has(self, *keys: str) -> bool:
        """Whether the last message is the assistant's and has one of them."""
        return (
            bool(self.messages)
            and self.messages[-1]["role"] == "assistant"
            and any(self.messages[-1].get(key) for key in keys)
        )

    def _assistants(self, begins: str) -> dict[str, Any]:
        """The assistant's message that an item belongs to. begins: a new one, if it is not empty."""
        if begins or not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": None})
        return self.messages[-1]


def _texts(where: str, content: Any, kinds: tuple[str, ...], between: str) -> str:
    """A text, or the texts of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_field(where, f"is {shown(content)}, allowed is a text, or a list of text parts")
    return between.join(_text(f"{where}[{index}]", part, kinds) for index, part in enumerate(content))


def _text(where: str, part: Any, kinds: tuple[str, ...]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        told = shown(part if kind is None else kind)
        raise bad_field(where, f"is of type {told}, allowed are {', '.join(kinds)}: the model reads text")
    key = "refusal" if kind == "refusal" else "text"
    _check_keys(where, part, _PART_KEYS | {key})
    if not isinstance(text := part.get(key), str):
        raise bad_field(f"{where}.{key}", f"is {shown(text)}, allowed is a text")
    return text


def _check_keys(where: str, given: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """A key that is null is one left out."""
    if more := sorted(key for key in given.keys() - allowed if given[key] is not None):
        raise bad_field(where, f"has the key {shown(more[0])}, allowed are {', '.join(sorted(allowed))}")
