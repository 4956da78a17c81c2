"""Grammars of answers that must be calls: the markup of a model's own format around JSON of each function's schema.

    start: call (SEPARATOR call)*
    call: "<tool_call>\\n{\\"name\\": \\"add\\", \\"arguments\\": " %json {...} "}\\n</tool_call>"

Strict functions of an answer that may also be text have a grammar of text with such calls in it. An answer whose form
is JSON may be calls instead.

A format whose arguments are not JSON has none; then calls are a plain JSON list, whatever the model is used to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from octavo.structured_outputs import StructuredOutputsParams
from octavo.text.answers.feed import Schemas
from octavo.text.answers.formats import FORMATS, CallFormat
from octavo.text.answers.json_calls import JsonCalls


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around calls, before and behind the arguments of each, and between two. NAME: the function's."""

    before: str
    after: str = "}"
    between: str = ", "
    begin: str = ""
    end: str = ""


#: what tells text from calls, at a frame's beginning
_FIRST_MARK = re.compile(r"<[^<>]+>|\[[A-Z_]+\]|functools")
_LIST = Frame('{"name": "NAME", "parameters": ', "}", ", ", "[", "]")
_PLAIN_LIST = JsonCalls((), bare="[")
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")

_FRAMES: Mapping[str, Frame] = {
    **dict.fromkeys(
        ("hermes", "granite4"),
        Frame('<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>", "\n"),
    ),
    **dict.fromkeys(("llama3_json", "llama4_json"), Frame('{"name": "NAME", "parameters": ', "}", "; ")),
    "mistral": Frame('{"name": "NAME", "arguments": ', "}", ", ", "[TOOL_CALLS][", "]"),
    "deepseek_v3": Frame(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n", "\n```<｜tool▁call▁end｜>", "\n", *_DEEPSEEK
    ),
    "deepseek_v31": Frame("<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "", *_DEEPSEEK),
    "granite": Frame('{"name": "NAME", "arguments": ', "}", ", ", "<|tool_call|>[", "]"),
    "phi4_mini_json": Frame('{"name": "NAME", "arguments": ', "}", ", ", "functools[", "]"),
    "openai": Frame("<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>", "", ""),
}


def forced_format(parser: str | None) -> CallFormat:
    """How calls are read that a grammar has forced."""
    known = parser if parser in _FRAMES else None
    return _PLAIN_LIST if known is None else FORMATS.get(known, _PLAIN_LIST)


def calls_grammar(
    parser: str | None, functions: Schemas, strict: frozenset[str], max_calls: int | None, special: Mapping[str, int]
) -> str:
    """An answer that is calls, in Lark's notation. strict: functions whose schemas must be kept in full; others'
    keywords that cannot be kept are left out. special: the tokens that only their ids can write."""
    frame = _FRAMES.get(parser or "", _LIST)
    more = "" if max_calls == 1 or parser == "openai" else f" ({_written(frame.between, special)} call)*"
    start = f"start: {_written(frame.begin, special)} call{more} {_written(frame.end, special)}"
    return "\n".join([start, *_call_rules(frame, functions, strict, special)])


def strict_grammar(
    parser: str | None, functions: Schemas, strict: frozenset[str], special: Mapping[str, int]
) -> str | None:
    """Free text, in which what begins as a call goes on as one. None: this format's calls have no mark that begins
    them, or no JSON."""
    frame, mark = _FRAMES.get(parser or ""), _mark(parser)
    if frame is None or mark is None:
        return None
    rest = replace(frame, **{"begin" if frame.begin else "before": (frame.begin or frame.before)[mark.end() :]})
    more = f" ({_written(rest.between, special)} call)*" if frame.begin else ""
    is_lazy = "" if mark[0] in special else "[lazy]"
    lines = [
        "start: section* TEXT",
        f"section: opening {_written(rest.begin, special)} call{more} {_written(rest.end, special)}",
        f"opening{is_lazy}: TEXT {_written(mark[0], special)}",
        "TEXT: /(.|\\n)*/",
    ]
    return "\n".join([*lines, *_call_rules(rest, functions, strict, special)])


def _mark(parser: str | None) -> re.Match[str] | None:
    """What begins the calls of a format and nothing else."""
    frame = _FRAMES.get(parser or "")
    if frame is None or parser == "openai":  # there, content begins with the same mark
        return None
    return _FIRST_MARK.match(frame.begin or frame.before)


def form_or_calls(
    parser: str | None,
    functions: Schemas,
    strict: frozenset[str],
    max_calls: int | None,
    special: Mapping[str, int],
    form: StructuredOutputsParams,
) -> str | None:
    """JSON of the form's schema, or calls in its place. None: as above, or the form is another."""
    schema = {"type": "object"} if form.json_object else form.json
    if _mark(parser) is None or not isinstance(schema, Mapping):
        return None
    if form != StructuredOutputsParams(json=form.json, json_object=form.json_object):
        return None  # it has switches, which are about JSON alone
    start, *rules = calls_grammar(parser, functions, strict, max_calls, special).split("\n")
    rule = f"form: %json {json.dumps(schema)}"
    return "\n".join(["start: form | calls", rule, start.replace("start:", "calls:", 1), *rules])


def _call_rules(frame: Frame, functions: Schemas, strict: frozenset[str], special: Mapping[str, int]) -> list[str]:
    """The rule `call`, and those that it needs."""
    lines = ["call: " + " | ".join(f"call_{index}" for index in range(len(functions)))]
    for index, (name, schema) in enumerate(functions.items()):
        before, after = _written(frame.before.replace("NAME", name), special), _written(frame.after, special)
        known = {"type": "object", **schema, **({} if name in strict else {"x-guidance": {"lenient": True}})}
        lines += [f"call_{index}: {before} arguments_{index} {after}", f"arguments_{index}: %json {json.dumps(known)}"]
    return lines


def _written(text: str, special: Mapping[str, int]) -> str:
    """The text in Lark's notation."""
    if not special:
        return _quoted(text)
    parts = re.split("(" + "|".join(map(re.escape, special)) + ")", text)
    return " ".join(f"<[{special[part]}]>" if part in special else _quoted(part) for part in parts if part)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
