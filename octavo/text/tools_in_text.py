"""Tools for models whose chat template does not know them: their description, calls and results as plain messages.

    tools                      a system message that describes them, and how to call one
    an assistant's tool_calls  <tool_call>{"name": ..., "arguments": ...}</tool_call> behind its content
    a message of role tool     a user's, <tool_response>...</tool_response>

That is how Hermes models were trained; others follow the description as well as they can.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.shown import shown

_HOW = """You may call functions to answer. These are available, described in JSON:
<tools>
{tools}
</tools>
To call one, write its name and its arguments in this form, once for each call:
<tool_call>
{{"name": "the function's name", "arguments": {{"parameter": "value"}}}}
</tool_call>"""


def reads_tools(template: str) -> bool:
    """Whether a template uses the variable `tools`."""
    return re.search(r"\btools\b", template) is not None


def with_tools(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The conversation for a template that does not know tools."""
    how = _HOW.format(tools="\n".join(_as_json("tools", tool) for tool in tools))
    told = [_plain(message) if isinstance(message, Mapping) else message for message in messages]
    first = told[0] if told and isinstance(told[0], Mapping) else {}
    if first.get("role") in ("system", "developer"):
        return [{**first, "content": _joined(_text(first.get("content")), how)}, *told[1:]]
    return [{"role": "system", "content": how}, *told]


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if message.get("role") == "tool":
        return {"role": "user", "content": f"<tool_response>\n{_text(message.get('content'))}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": _joined(_text(message.get("content")), *map(_call, _calls(message["tool_calls"])))}


def _calls(calls: object) -> list[Any]:
    if not isinstance(calls, list):
        raise InvalidRequestError(f"tool_calls is {shown(calls)}, allowed is a list of calls")
    return calls


def _call(call: object) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequestError(f"a call in tool_calls is {shown(call)}, allowed is {{'function': {{'name': ...}}}}")
    given = function.get("arguments") or "{}"
    arguments = given if isinstance(given, str) else _as_json("arguments", given)
    return f'<tool_call>\n{{"name": {json.dumps(function["name"])}, "arguments": {arguments}}}\n</tool_call>'


def _as_json(name: str, value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{name} has {shown(value)}, allowed is what JSON can say, but {error}") from None


def _text(content: Any) -> str:
    """Contents are checked already, or by whoever renders them."""
    if isinstance(content, list):
        return "\n".join(str(part["text"]) if isinstance(part, Mapping) and "text" in part else "" for part in content)
    return "" if content is None else str(content)


def _joined(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)
