"""The formats in which models write calls, by vLLM's names, and how a whole answer in each is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from octavo.text.answers.brace_calls import BraceCalls
from octavo.text.answers.feed import BrokenCall, Feed, Steps
from octavo.text.answers.json_calls import JsonCalls, MistralCalls, NamedCalls
from octavo.text.answers.python_calls import PythonCalls
from octavo.text.answers.xml_calls import XmlCalls


class CallFormat(Protocol):
    """opens: marks that begin calls. bare: what calls without a mark begin with, at an answer's beginning."""

    @property
    def opens(self) -> tuple[str, ...]: ...
    @property
    def bare(self) -> str: ...

    def read(self, feed: Feed, mark: str) -> Steps[None]:
        """Read the calls behind a mark. Raises BrokenCall."""


def read_calls(feed: Feed, style: CallFormat) -> Steps[None]:
    """The content of an answer and the calls in it, to its end."""
    while style.bare and not feed.text.strip() and not feed.has_ended:
        yield
    feed.say(feed.take(len(feed.text) - len(feed.text.lstrip())))
    if style.bare and feed.text.startswith(style.bare):
        yield from _try(feed, style, "")
    while mark := (yield from feed.until(style.opens, feed.say)):
        yield from _try(feed, style, mark)


def read_text(feed: Feed) -> Steps[None]:
    """An answer that holds no calls."""
    yield from feed.until((), feed.say)


def _try(feed: Feed, style: CallFormat, mark: str) -> Steps[None]:
    feed.open(mark)
    try:
        yield from style.read(feed, mark)
        feed.shut()
    except BrokenCall:
        feed.give_up()


def _numbered_name(text: str) -> tuple[str, str | None]:
    """functions.add:0 is the id of a call of add."""
    name = re.sub(r"^functions\.", "", text)
    return re.sub(r":\d+$", "", name), text if name != text else None


_HERMES = JsonCalls(("<tool_call>",), ("</tool_call>",))
_DEEPSEEK = NamedCalls(
    opens=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    begin="<｜tool▁call▁begin｜>",
    name_end=("<｜tool▁sep｜>",),
    end=("<｜tool▁call▁end｜>",),
    close="<｜tool▁calls▁end｜>",
)
_QWEN_XML = XmlCalls(
    opens=("<tool_call>", "<function="),
    function="<function=",
    name_end=(">",),
    parameter="<parameter=",
    key_end=">",
    value="",
    end="</parameter>",
    function_end="</function>",
    close="</tool_call>",
)

FORMATS: Mapping[str, CallFormat] = {
    "hermes": _HERMES,
    "qwen3_coder": _QWEN_XML,
    "qwen3_xml": _QWEN_XML,
    "llama3_json": JsonCalls(("<|python_tag|>",), (), (";", ","), bare="{"),
    "llama4_json": JsonCalls(("<|python_tag|>",), (), (";", ","), bare="{"),
    "llama4_pythonic": PythonCalls(("<|python_start|>",), "<|python_end|>"),
    "pythonic": PythonCalls((), ""),
    "mistral": MistralCalls(),
    "deepseek_v3": replace(_DEEPSEEK, kind="<｜tool▁sep｜>", name_end=("\n",), fence="```"),
    "deepseek_v31": _DEEPSEEK,
    "kimi_k2": NamedCalls(
        opens=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        begin="<|tool_call_begin|>",
        name_end=("<|tool_call_argument_begin|>",),
        end=("<|tool_call_end|>",),
        close="<|tool_calls_section_end|>",
        read_name=_numbered_name,
    ),
    "glm45": XmlCalls(
        opens=("<tool_call>",),
        function="",
        name_end=("\n", "<arg_key>", "</tool_call>"),
        parameter="<arg_key>",
        key_end="</arg_key>",
        value="<arg_value>",
        end="</arg_value>",
        function_end="</tool_call>",
        close="",
        is_padded=False,
    ),
    "minimax_m2": XmlCalls(
        opens=("<minimax:tool_call>",),
        function='<invoke name="',
        name_end=('">',),
        parameter='<parameter name="',
        key_end='">',
        value="",
        end="</parameter>",
        function_end="</invoke>",
        close="</minimax:tool_call>",
    ),
    "granite": JsonCalls(("<|tool_call|>", "<tool_call>"), ("</tool_call>",)),
    "granite4": _HERMES,
    "phi4_mini_json": JsonCalls(("functools", "<|tool_call|>"), ("<|/tool_call|>",)),
    "gemma4": BraceCalls(("<|tool_call>",), '<|"|>', "<tool_call|>"),
    "functiongemma": BraceCalls(("<start_function_call>",), "<escape>", "<end_function_call>"),
}
