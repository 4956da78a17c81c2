"""Structural tags: free text in which what follows a trigger must have a form, such as calls of functions.

{"structures": [{"begin": "<f=add>", "schema": {...}, "end": "</f>"}], "triggers": ["<f="]}

The sum is <f=add>{"a": 1, "b": 2}</f>, I think.
free text  |trigger ... schema ... end|  free text
"""

from __future__ import annotations

import json
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.shown import shown


def structural_tag(asked: Any) -> str:
    """The grammar, in the notation of llguidance."""
    from llguidance import StructTag

    if not isinstance(asked, dict):
        raise _bad("", asked, "is an object")
    if "format" in asked:
        raise _bad(".format", asked["format"], "are structures and triggers in its place")
    triggers = _list(asked, "triggers")
    if any(not isinstance(one, str) or not one for one in triggers):
        raise _bad(".triggers", triggers, "are texts of at least one character")
    tags = [_tag(StructTag, index, one, triggers) for index, one in enumerate(_list(asked, "structures"))]
    return str(StructTag.to_grammar(tags, assume_special=False))


def _tag(kind: Any, index: int, asked: Any, triggers: list[str]) -> Any:
    name = f".structures[{index}]"
    if not isinstance(asked, dict) or not asked.keys() <= {"begin", "schema", "end"} or "begin" not in asked:
        raise _bad(name, asked, "is an object of begin, schema and end")
    begin, end, schema = asked["begin"], asked.get("end", ""), asked.get("schema", {})
    if not isinstance(begin, str) or not isinstance(end, str):
        raise _bad(name, asked, "has texts as begin and end")
    if not isinstance(schema, dict):
        raise _bad(f"{name}.schema", schema, "is a JSON schema, which is an object")
    trigger = next((one for one in triggers if begin.startswith(one)), None)
    if trigger is None:
        raise _bad(f"{name}.begin", begin, f"begins with one of the triggers, {shown(triggers)}")
    return kind(trigger=trigger, begin=begin, grammar=json.loads(json.dumps(schema)), end=end)


def _list(asked: dict[str, Any], name: str) -> list[Any]:
    found = asked.get(name)
    if not isinstance(found, list) or not found:
        raise _bad(f".{name}", found, "is a list of at least one")
    return found


def _bad(place: str, value: object, allowed: str) -> InvalidRequestError:
    return InvalidRequestError(f"structured_outputs.structural_tag{place} is {shown(value)}, allowed {allowed}")
