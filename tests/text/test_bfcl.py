"""The Berkeley Function-Calling Leaderboard's expected calls, written in each format and read back exactly.

Its data comes with the package bfcl-eval, which `make` downloads; without it the test is skipped.
"""

from __future__ import annotations

import json
import random
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from octavo.text.answers.parser import AnswerParser, answer_of
from tests.text.test_answers import reader
from tests.text.written_calls import WRITERS, Call

PACKAGES = sorted((Path(sys.prefix) / "sdists").glob("bfcl_eval-*.whl"))
SETS = ("simple_python", "multiple", "parallel", "parallel_multiple", "live_simple", "live_multiple", "simple_java")
#: the leaderboard's names of types -> JSON Schema's
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": ["string", "number", "object", "array", "null"]}
NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
#: formats that leave types to the schema
WITHOUT_TYPES = ("qwen3_coder", "qwen3_xml", "glm45", "minimax_m2")
NUM_SAMPLES = 120

needs_data = pytest.mark.skipif(not PACKAGES, reason="bfcl-eval is not downloaded: see the Makefile")


@cache
def samples() -> list[tuple[dict[str, Any], list[Call]]]:
    """The functions of a row, and the calls that it expects."""
    with zipfile.ZipFile(PACKAGES[-1]) as package:
        rows = [row for name in SETS for row in _rows(package, name)]
    return random.Random(3).sample(rows, NUM_SAMPLES)


def _rows(package: zipfile.ZipFile, name: str) -> Iterator[tuple[dict[str, Any], list[Call]]]:
    answers = {one["id"]: one["ground_truth"] for one in _lines(package, f"possible_answer/BFCL_v4_{name}.json")}
    for row in _lines(package, f"BFCL_v4_{name}.json"):
        functions = {one["name"]: _schema(one["parameters"]) for one in row["function"]}
        yield (
            functions,
            [
                (called, {key: value for key, values in given.items() if (value := _first(values)) != ""})
                for call in answers[row["id"]]
                for called, given in call.items()
            ],
        )


def _lines(package: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in package.read(f"bfcl_eval/data/{name}").decode().splitlines()]


def _schema(given: Any) -> Any:
    if isinstance(given, dict):
        made = {key: _schema(value) for key, value in given.items()}
        if isinstance(kind := made.get("type"), str):
            made["type"] = TYPES.get(kind, kind)
        return made
    return [_schema(one) for one in given] if isinstance(given, list) else given


def _first(values: Any) -> Any:
    """Of each value, the first of those that are right."""
    value = values[0] if isinstance(values, list) and values else values
    return _inner(value)


def _inner(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _first(one) for key, one in value.items()}
    return [_inner(one) for one in value] if isinstance(value, list) else value


def _fit(functions: dict[str, Any], calls: list[Call]) -> bool:
    """Whether all values have the types of their schemas, which some rows' do not."""
    for name, arguments in calls:
        properties = functions[name].get("properties", {})
        for key, value in arguments.items():
            kinds = properties.get(key, {}).get("type", [])
            found = {NAMES.get(type(value), "null")}
            if not found & set([kinds] if isinstance(kinds, str) else kinds):
                return False
    return True


@needs_data
@pytest.mark.parametrize("name", WRITERS)
def test_expected_calls_are_read_back(name: str) -> None:
    rng = random.Random(5)
    num_read = 0
    for functions, calls in samples():
        if name in WITHOUT_TYPES and not _fit(functions, calls):
            continue
        text = WRITERS[name](calls)
        at = rng.randrange(len(text))
        for pieces in ([text], [text[:at], text[at:]], [text[i : i + 5] for i in range(0, len(text), 5)]):
            parser = AnswerParser(reader(name), functions)
            events = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
            found = [(one.name, json.loads(one.arguments)) for one in answer_of(events).calls]
            assert json.dumps(found) == json.dumps(calls)
        num_read += 1
    assert num_read > NUM_SAMPLES / 2
