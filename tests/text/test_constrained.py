"""Grammars of calls: they take what a format's writer writes, and nothing that breaks a schema."""

from __future__ import annotations

import pytest

from octavo.structured.compiler import GrammarCompiler
from octavo.structured.grammar import grammar_text
from octavo.structured_outputs import StructuredOutputsParams
from octavo.text.answers.constrained import calls_grammar, form_or_calls, strict_grammar
from tests.structured.spelling_model import byte_compiler
from tests.text.written_calls import WRITERS, Call

CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
FUNCTIONS = {"weather": {**CITY, "additionalProperties": False}, "clock": {"type": "object", "maxProperties": 0}}
STRICT = frozenset(FUNCTIONS)
GOOD: list[Call] = [("weather", {"city": "Rome"}), ("clock", {})]
BAD: list[Call] = [("weather", {"city": "Bonn"})]
MARKED = ("hermes", "mistral", "deepseek_v3", "deepseek_v31", "granite", "phi4_mini_json")


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    return byte_compiler(tmp_path_factory.mktemp("constrained"))


def takes(compiler: GrammarCompiler, grammar: str, text: str) -> bool:
    """Whether the grammar takes the text, and lets it end there."""
    matcher = compiler.matcher(grammar_text(StructuredOutputsParams(grammar=grammar)))
    tokens = compiler.vocabulary.encode(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("name", [*MARKED, "llama3_json"])
def test_forced_calls_are_those_that_the_format_has(compiler: GrammarCompiler, name: str) -> None:
    several = calls_grammar(name, FUNCTIONS, STRICT, None, {})
    single = calls_grammar(name, FUNCTIONS, STRICT, 1, {})
    write = WRITERS[name]
    assert takes(compiler, several, write(GOOD))
    assert takes(compiler, single, write(GOOD[:1]))
    assert not takes(compiler, single, write(GOOD))
    assert not takes(compiler, several, write(BAD))
    assert not takes(compiler, several, "Hi")


@pytest.mark.parametrize("name", MARKED)
def test_strict_calls_may_stand_in_text(compiler: GrammarCompiler, name: str) -> None:
    grammar = strict_grammar(name, FUNCTIONS, STRICT, {})
    assert grammar is not None
    write = WRITERS[name]
    for text in ("", "Hi, {there} <b>.\n", f"Look:\n{write(GOOD)}", write(GOOD[:1])):
        assert takes(compiler, grammar, text)
    for text in (f"Look: {write(BAD)}", write(BAD)):
        assert not takes(compiler, grammar, text)


@pytest.mark.parametrize("name", MARKED)
def test_an_answer_with_a_form_may_be_calls_instead(compiler: GrammarCompiler, name: str) -> None:
    report = {"type": "object", "properties": {"sky": {"enum": ["sun"]}}, "required": ["sky"]}
    grammar = form_or_calls(name, FUNCTIONS, STRICT, None, {}, StructuredOutputsParams(json=report))
    assert grammar is not None
    write = WRITERS[name]
    for text in (write(GOOD), write(GOOD[:1]), '{"sky": "sun"}'):
        assert takes(compiler, grammar, text)
    for text in (write(BAD), '{"sky": "moon"}', f"Look: {write(GOOD)}", ""):
        assert not takes(compiler, grammar, text)


def test_other_formats_have_no_grammar_of_text_with_calls() -> None:
    form = StructuredOutputsParams(json_object=True)
    for name in ("llama3_json", "qwen3_coder", "pythonic", "openai", None):
        assert strict_grammar(name, FUNCTIONS, STRICT, {}) is None
        assert form_or_calls(name, FUNCTIONS, STRICT, None, {}, form) is None
    for other in ({"regex": "a"}, {"json": "{}"}, {"json_object": True, "disable_any_whitespace": True}):
        assert form_or_calls("hermes", FUNCTIONS, STRICT, None, {}, StructuredOutputsParams(**other)) is None  # type: ignore[arg-type]


def test_special_tokens_are_written_by_their_ids() -> None:
    grammar = strict_grammar("mistral", FUNCTIONS, STRICT, {"[TOOL_CALLS]": 7})
    assert grammar is not None
    assert "opening: TEXT <[7]>" in grammar
    assert '<[7]> "["' in calls_grammar("mistral", FUNCTIONS, STRICT, None, {"[TOOL_CALLS]": 7})
