"""From what a user asks for to the text of a grammar, in the notation of llguidance."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.shown import cut, shown
from octavo.structured.structural_tag import structural_tag
from octavo.structured_outputs import FORMS, MAX_SIZE, StructuredOutputsParams, too_large

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_DEPTH = 64  # of JSON in JSON, as in vLLM


def grammar_text(asked: StructuredOutputsParams) -> str:
    """The grammar. Raises InvalidRequestError if what was asked is not well formed; whether the grammar can be
    compiled shows later."""
    name = next(name for name in FORMS if getattr(asked, name) not in (None, False))
    try:
        text = _WRITERS[name](asked)
    except RecursionError:
        raise InvalidRequestError(f"structured_outputs.{name} is nested too deep; flatten it") from None
    except ValueError as error:
        raise InvalidRequestError(f"structured_outputs.{name} is not well formed: {cut(str(error), 400)}") from None
    if len(text) > 4 * MAX_SIZE:  # characters that were escaped
        raise too_large(name, len(text))
    return text


def _json(asked: StructuredOutputsParams) -> str:
    assert asked.json is not None, "chosen by name"
    schema = read_json("json", asked.json)
    if not isinstance(schema, (dict, bool)):
        raise InvalidRequestError(f"structured_outputs.json is {shown(schema)}, allowed is a schema: an object")
    return _of_schema(schema, asked)


def _of_schema(schema: dict[str, Any] | bool, asked: StructuredOutputsParams) -> str:
    from llguidance import LLMatcher  # a library in Rust, which most processes never need

    if schema is False:
        raise InvalidRequestError("structured_outputs.json is false, a schema that no answer can have")
    whole = {} if schema is True else schema
    if asked.disable_additional_properties:
        whole = _closed(whole)
    options: JsonCompileOptions = {
        "whitespace_flexible": not asked.disable_any_whitespace,
        "lenient": False,
        "coerce_one_of": False,
    }
    if asked.whitespace_pattern is not None:
        options["whitespace_pattern"] = asked.whitespace_pattern
    return LLMatcher.grammar_from_json_schema(whole, overrides=options)


def _closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false` in each object that names properties and does not have it."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items()}
    if "properties" in made or "patternProperties" in made:
        made.setdefault("additionalProperties", False)
    return made


def _regex(asked: StructuredOutputsParams) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(str(asked.regex))


def _choice(asked: StructuredOutputsParams) -> str:
    from llguidance import LLMatcher

    texts = [json.dumps(one, ensure_ascii=False) for one in asked.choice or ()]
    return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))


def _grammar(asked: StructuredOutputsParams) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        lark = any_to_lark(str(asked.grammar))
    except RecursionError:
        raise
    except Exception as error:  # its own class, or whatever a broken text does to its parser
        raise ValueError(str(error) or type(error).__name__) from None
    return LLMatcher.grammar_from_lark(lark)


def _structural_tag(asked: StructuredOutputsParams) -> str:
    assert asked.structural_tag is not None, "chosen by name"
    return structural_tag(read_json("structural_tag", asked.structural_tag))


def read_json(name: str, given: str | Mapping[str, Any]) -> Any:
    """A field that is JSON, or text of it."""
    if not isinstance(given, str):
        try:
            given = json.dumps(given)
        except TypeError as error:
            raise ValueError(str(error)) from None
    if len(given) > MAX_SIZE:
        raise too_large(name, len(given))
    value = json.loads(given)
    _check_depth(name, value)
    return value


def _check_depth(name: str, value: Any) -> None:
    level, depth = [value], 0
    while level := [inner for one in level for inner in _inside(one)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidRequestError(
                f"structured_outputs.{name} is nested more than {MAX_DEPTH} deep, which is the limit; flatten it, or "
                "use $defs and $ref"
            )


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


_WRITERS: Mapping[str, Callable[[StructuredOutputsParams], str]] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": lambda asked: _of_schema({"type": "object"}, asked),
    "structural_tag": _structural_tag,
}
