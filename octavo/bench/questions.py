"""Questions with choices: from a file, or from a package that carries some.

{"question": "The capital of France is", "choices": [" Paris", " Rome"], "answer": 0}     a line of a file

bfcl    which of several functions does what a user asks for? 200 questions of the Berkeley Function Calling
        Leaderboard (Patil et al., 2024), in the package bfcl-eval, Apache-2.0
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError
from octavo.shown import shown

_MOST_CHOICES = 64
_MOST_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Question:
    """prompt: what a choice continues. answer: the number of the right choice. label: for messages."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    label: str


def read_questions(source: str, count: int) -> list[Question]:
    """The first `count` questions. source: a name of PACKAGED, or a file. Raises ConfigError."""
    found = list(PACKAGED[source]() if source in PACKAGED else _of_file(source))[:count]
    if not found:
        raise ConfigError(f"--questions {source!r} has no question")
    return found


def _of_file(path: str) -> Iterator[Question]:
    try:
        if Path(path).stat().st_size > _MOST_BYTES or not Path(path).is_file():
            raise ConfigError(f"--questions {path!r} is no file of up to {_MOST_BYTES >> 20} MiB")
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # no such file, not UTF-8, no file's name
        if isinstance(error, ConfigError):
            raise
        names = ", ".join(PACKAGED)
        raise ConfigError(
            f"--questions {path[:80]!r} cannot be read: {error}; allowed are {names} and a file"
        ) from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _question(line, f"{path}, line {number}")


def _question(line: str, label: str) -> Question:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{label} is not JSON: {error}") from None
    if not isinstance(values, dict) or set(values) != {"question", "choices", "answer"}:
        raise ConfigError(f"{label} is {shown(values)}; allowed is an object with question, choices and answer")
    prompt, choices, answer = values["question"], values["choices"], values["answer"]
    if not isinstance(prompt, str) or not prompt:
        raise ConfigError(f"{label}: question is {shown(prompt)}, allowed is a text")
    is_list = isinstance(choices, list) and 2 <= len(choices) <= _MOST_CHOICES
    if not is_list or not all(isinstance(choice, str) and choice for choice in choices):
        raise ConfigError(f"{label}: choices is {shown(choices)}, allowed are 2 to {_MOST_CHOICES} texts")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ConfigError(f"{label}: answer is {shown(answer)}, allowed is 0 to {len(choices) - 1}")
    return Question(prompt, tuple(choices), answer, label)


def _bfcl() -> Iterator[Question]:
    spec = find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("--questions is 'bfcl', whose package is missing: run `pip install --no-deps bfcl-eval`")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    try:
        rows, keys = (
            [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
            for name in ("BFCL_v4_multiple.json", "possible_answer/BFCL_v4_multiple.json")
        )
        for row, key in zip(rows, keys, strict=True):
            yield _of_bfcl(row, key)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"--questions is 'bfcl', whose package in {folder} is of another version than Octavo reads ({error!r}): "
            "run `pip install --no-deps bfcl-eval==2026.3.23`"
        ) from None


def _of_bfcl(row: Any, key: Any) -> Question:
    names = [str(function["name"]) for function in row["function"]]
    described = "\n".join(f"- {function['name']}: {function['description']}" for function in row["function"])
    request = row["question"][0][0]["content"]
    prompt = f"Functions:\n{described}\n\nRequest: {request}\nThe function to call is:"
    right = names.index(next(iter(key["ground_truth"][0])))
    return Question(prompt, tuple(f" {name}" for name in names), right, f"bfcl question {row['id']}")


PACKAGED: dict[str, Callable[[], Iterator[Question]]] = {"bfcl": _bfcl}
