"""tools, tool_choice and parallel_tool_calls of a request, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.server.api_errors import bad_field
from octavo.shown import shown

_MAX_TOOLS = 1024
_NAME = re.compile(r"[\w.\-]{1,128}", re.ASCII)
_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """functions: those that may be called, name -> the schema of its parameters. choice: none, auto, required, or
    `named`, the only function to call. strict: functions whose calls must match their schemas. is_parallel: whether an
    answer may hold several calls."""

    functions: Mapping[str, Mapping[str, Any]]
    choice: str
    named: str | None
    strict: frozenset[str]
    is_parallel: bool

    @property
    def must_call(self) -> bool:
        return self.choice == "required" or self.named is not None

    @property
    def max_calls(self) -> int | None:
        return None if self.is_parallel and self.named is None else 1


def asked_tools(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None, is_parallel: bool | None
) -> Tools | None:
    """None: the request has no tools. Raises ApiError."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise bad_field("tool_choice", f"is {shown(choice)} and tools is empty, allowed are none and auto")
        return None
    if len(tools) > _MAX_TOOLS:
        raise bad_field("tools", f"holds {len(tools)} tools, allowed are {_MAX_TOOLS}")
    functions: dict[str, Mapping[str, Any]] = {}
    strict: set[str] = set()
    for index, tool in enumerate(tools):
        name, schema, is_strict = _function(f"tools[{index}]", tool)
        if name in functions:
            raise bad_field(f"tools[{index}].function.name", f"is {name!r}, the name of an earlier tool")
        functions[name] = schema
        strict |= {name} if is_strict else set()
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        choice, functions = _allowed(choice.get("allowed_tools"), functions)
    kind, named = _choice(choice, functions)
    return Tools(
        functions=functions,
        choice=kind,
        named=named,
        strict=frozenset(strict & functions.keys()),
        is_parallel=is_parallel is not False,
    )


def _function(where: str, tool: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], bool]:
    """-> name, schema of the parameters, whether it is strict."""
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
        problem = f"is {shown(tool)}, allowed is {{'type': 'function', 'function': {{'name': ...}}}}"
        raise bad_field(where, problem)
    where = f"{where}.function"
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_field(f"{where}.name", f"is {shown(name)}, allowed are 1 to 128 letters, digits, _, - and .")
    schema = function.get("parameters")
    if schema is not None and not isinstance(schema, Mapping):
        raise bad_field(f"{where}.parameters", f"is {shown(schema)}, allowed is a JSON schema, which is an object")
    if schema is not None and schema.get("type", "object") != "object":
        kind = schema["type"]
        raise bad_field(f"{where}.parameters.type", f"is {shown(kind)}, allowed is object: arguments have names")
    is_strict = function.get("strict")
    if is_strict is not None and not isinstance(is_strict, bool):
        raise bad_field(f"{where}.strict", f"is {shown(is_strict)}, allowed is true or false")
    if (text := function.get("description")) is not None and not isinstance(text, str):
        raise bad_field(f"{where}.description", f"is {shown(text)}, allowed is text")
    return name, schema or {"type": "object", "properties": {}}, bool(is_strict)


def _allowed(given: Any, functions: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """-> auto or required, and the functions that may be called; the model is shown all of them."""
    given = given if isinstance(given, Mapping) else {}
    mode, tools = given.get("mode"), given.get("tools")
    if mode not in ("auto", "required"):
        raise bad_field("tool_choice.allowed_tools.mode", f"is {shown(mode)}, allowed are auto and required")
    if not isinstance(tools, Sequence) or isinstance(tools, str) or not tools:
        problem = (
            f"is {shown(tools)}, allowed is a list of one or more {{'type': 'function', 'function': {{'name': ...}}}}"
        )
        raise bad_field("tool_choice.allowed_tools.tools", problem)
    names = [_choice(tool if isinstance(tool, Mapping) else {}, functions)[1] for tool in tools]
    return str(mode), {name: functions[name] for name in functions if name in names}


def _choice(choice: str | Mapping[str, Any] | None, functions: Mapping[str, Any]) -> tuple[str, str | None]:
    """-> the kind of choice, and the function that is chosen by name."""
    if choice is None:
        return "auto", None
    if isinstance(choice, str) and choice in _CHOICES:
        return choice, None
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name is None:
        problem = "allowed are none, auto, required, {'type': 'function', 'function': {'name': ...}} and allowed_tools"
        raise bad_field("tool_choice", f"is {shown(choice)}, {problem}")
    if not isinstance(name, str) or name not in functions:
        raise bad_field("tool_choice", f"names {shown(name)}, allowed are the names of tools: {', '.join(functions)}")
    return "named", name
