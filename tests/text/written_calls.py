"""Calls as each family of models writes them, by its own template's convention. Written without the code under test."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Call = tuple[str, Mapping[str, Any]]


def _json(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _objects(calls: Sequence[Call], key: str = "arguments") -> list[str]:
    return [f'{{"name": "{name}", "{key}": {_json(arguments)}}}' for name, arguments in calls]


def _hermes(calls: Sequence[Call]) -> str:
    return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in _objects(calls))


def _deepseek_v3(calls: Sequence[Call]) -> str:
    written = [
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{_json(arguments)}\n```<｜tool▁call▁end｜>"
        for name, arguments in calls
    ]
    return "<｜tool▁calls▁begin｜>" + "\n".join(written) + "<｜tool▁calls▁end｜>"


def _deepseek_v31(calls: Sequence[Call]) -> str:
    written = [f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{_json(args)}<｜tool▁call▁end｜>" for name, args in calls]
    return "<｜tool▁calls▁begin｜>" + "".join(written) + "<｜tool▁calls▁end｜>"


def _kimi(calls: Sequence[Call]) -> str:
    written = [
        f"<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{_json(args)}<|tool_call_end|>"
        for index, (name, args) in enumerate(calls)
    ]
    return "<|tool_calls_section_begin|>" + "".join(written) + "<|tool_calls_section_end|>"


def _element(value: Any) -> str:
    """As templates print a value inside an element."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _qwen_xml(calls: Sequence[Call]) -> str:
    written = []
    for name, arguments in calls:
        parameters = [f"<parameter={key}>\n{_element(value)}\n</parameter>\n" for key, value in arguments.items()]
        written.append(f"<tool_call>\n<function={name}>\n{''.join(parameters)}</function>\n</tool_call>")
    return "\n".join(written)


def _glm(calls: Sequence[Call]) -> str:
    written = []
    for name, arguments in calls:
        parameters = [
            f"<arg_key>{key}</arg_key>\n<arg_value>{_element(value)}</arg_value>\n" for key, value in arguments.items()
        ]
        written.append(f"<tool_call>{name}\n{''.join(parameters)}</tool_call>")
    return "\n".join(written)


def _minimax(calls: Sequence[Call]) -> str:
    written = []
    for name, arguments in calls:
        parameters = [f'<parameter name="{key}">{_element(value)}</parameter>\n' for key, value in arguments.items()]
        written.append(f'<invoke name="{name}">\n{"".join(parameters)}</invoke>\n')
    return "<minimax:tool_call>\n" + "".join(written) + "</minimax:tool_call>"


def _python(calls: Sequence[Call]) -> str:
    written = [f"{name}({', '.join(f'{key}={value!r}' for key, value in args.items())})" for name, args in calls]
    return f"[{', '.join(written)}]"


def _braces(quote: str) -> Callable[[Any], str]:
    def write(value: Any) -> str:
        if isinstance(value, str):
            return f"{quote}{value}{quote}"
        if isinstance(value, Mapping):
            return "{" + ",".join(f"{key}:{write(one)}" for key, one in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(write, value)) + "]"
        return json.dumps(value)

    return write


def _gemma(begin: str, quote: str, end: str) -> Callable[[Sequence[Call]], str]:
    write = _braces(quote)
    return lambda calls: "".join(f"{begin}call:{name}{write(arguments)}{end}" for name, arguments in calls)


def _harmony(calls: Sequence[Call]) -> str:
    written = [
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{_json(arguments)}<|call|>"
        for name, arguments in calls
    ]
    return "<|start|>assistant".join(written)


WRITERS: Mapping[str, Callable[[Sequence[Call]], str]] = {
    "hermes": _hermes,
    "granite4": _hermes,
    "qwen3_coder": _qwen_xml,
    "qwen3_xml": _qwen_xml,
    "llama3_json": lambda calls: "; ".join(_objects(calls, "parameters")),
    "llama4_json": lambda calls: "<|python_tag|>" + "; ".join(_objects(calls, "parameters")),
    "llama4_pythonic": lambda calls: f"<|python_start|>{_python(calls)}<|python_end|>",
    "pythonic": _python,
    "mistral": lambda calls: f"[TOOL_CALLS][{', '.join(_objects(calls))}]",
    "deepseek_v3": _deepseek_v3,
    "deepseek_v31": _deepseek_v31,
    "kimi_k2": _kimi,
    "glm45": _glm,
    "minimax_m2": _minimax,
    "granite": lambda calls: f"<|tool_call|>[{', '.join(_objects(calls))}]",
    "phi4_mini_json": lambda calls: f"functools[{', '.join(_objects(calls))}]",
    "gemma4": _gemma("<|tool_call>", '<|"|>', "<tool_call|>"),
    "functiongemma": _gemma("<start_function_call>", "<escape>", "<end_function_call>"),
    "openai": _harmony,
}


def mistral_v11(calls: Sequence[Call]) -> str:
    """Since version 11 of its tokenizer, each call has a mark of its own."""
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{_json(arguments)}" for name, arguments in calls)
