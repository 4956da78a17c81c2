"""Converts a request's messages to the form that its chat template expects.

role developer           "system", if the template does not know the role
content as parts         one text, a line per part; or parts, if the template iterates over them
content as one text      unchanged, or as a single part
no content               "", or None if the template tests for it; only the assistant may omit it
"" beside a tool call    the same: clients send either
arguments as JSON text   parsed to an object; or left as text, if the template prints them
reasoning                also as reasoning_content, and the other way round: templates read one of them
null fields              dropped, since templates test whether a key exists
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.config import ContentFormat
from octavo.errors import InvalidRequestError
from octavo.shown import shown
from octavo.text.template_facts import TemplateFacts

Message = Mapping[str, Any]
Content = str | list[dict[str, str]] | None


def messages_for_template(
    facts: TemplateFacts, messages: Sequence[Message], content_format: ContentFormat
) -> list[dict[str, Any]]:
    """Raises InvalidRequestError for an invalid message."""
    numbered = enumerate(_listed("messages", messages))
    plain = [_message(facts, f"messages[{index}]", one, content_format) for index, one in numbered]
    if not plain:
        raise InvalidRequestError("messages is empty; send at least one message")
    return plain


def append_text(message: dict[str, Any], text: str) -> None:
    """Append a text to the message's content."""
    content = message["content"]
    if isinstance(content, list) and content:
        content[-1] = {**content[-1], "text": content[-1]["text"] + text}
    elif isinstance(content, list):
        content.append(_part(text))
    else:
        message["content"] = (content or "") + text


def _listed(name: str, value: object) -> Sequence[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidRequestError(f"{name} is {shown(value)}, allowed is a list of objects")
    return value


def _message(facts: TemplateFacts, where: str, message: object, content_format: ContentFormat) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequestError(f"{where} is {shown(message)}, allowed is an object with a 'role' and a 'content'")
    kept = {key: value for key, value in message.items() if value is not None}
    if kept["role"] == "developer" and not facts.knows_developer:
        kept["role"] = "system"
    kept["content"] = _content(facts, where, message, content_format)
    thoughts = kept.get("reasoning_content", kept.get("reasoning"))
    if isinstance(thoughts, str):
        kept["reasoning_content"] = kept["reasoning"] = thoughts
    if isinstance(kept.get("tool_calls"), Sequence) and not isinstance(kept["tool_calls"], str):
        kept["tool_calls"] = [_tool_call(call, facts.wants_argument_text) for call in kept["tool_calls"]]
    return kept


def _content(facts: TemplateFacts, where: str, message: Message, content_format: ContentFormat) -> Content:
    content = message.get("content")
    reads_parts = facts.reads_parts if content_format == "auto" else content_format == "openai"
    takes_text = not reads_parts or (content_format == "auto" and facts.asks_for_text)
    if content is None:
        _check_may_be_silent(where, message)
    if content is None or (content == "" and message.get("tool_calls")):
        if facts.asks_for_none:
            return None
        return "" if takes_text else []
    if isinstance(content, str):
        return content if takes_text else [_part(content)]
    texts = [
        _text_of(f"{where}.content[{index}]", part) for index, part in enumerate(_listed(f"{where}.content", content))
    ]
    return [_part(text) for text in texts] if reads_parts else "\n".join(texts)


def _check_may_be_silent(where: str, message: Message) -> None:
    if message.get("tool_calls") or message.get("function_call"):
        return
    if "content" not in message and "tool_calls" not in message:
        raise InvalidRequestError(f"{where} has neither 'content' nor 'tool_calls'")
    if message["role"] != "assistant":
        raise InvalidRequestError(
            f"{where}.content is None, allowed is text or parts: only an assistant message may have no content"
        )


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _text_of(where: str, part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else None
    found = f"of type {shown(kind)}" if isinstance(kind, str) and kind != "text" else shown(part)
    raise InvalidRequestError(f"{where} is {found}, allowed is {{'type': 'text', 'text': ...}}: the model reads text")


def _tool_call(call: Any, wants_text: bool) -> Any:
    """Convert the arguments to the form that the template expects. A call may be a bare function object."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _tool_call(call["function"], wants_text)}
    if "arguments" not in call:
        return call
    given = call["arguments"]
    if wants_text:
        return call if isinstance(given, str) else {**call, "arguments": json.dumps(given, ensure_ascii=False)}
    return {**call, "arguments": _read_arguments(given)} if isinstance(given, str) else call


def _read_arguments(text: str) -> Any:
    """Arguments that are not a JSON object stay text: a model may have written them."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return arguments if isinstance(arguments, dict) else text
