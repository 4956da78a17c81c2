"""Lines of a file of prompts: plain text or JSON objects.

A broken JSON line must not be answered as if it were text, so ambiguous lines are refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.shown import cut

PROMPT_KEYS = ("prompt", "messages", "prompt_token_ids")
#: of a line in OpenAI's batch format
_BATCH_KEYS = frozenset({"custom_id", "method", "url", "body"})
_JSONL_ENDINGS = (".jsonl", ".ndjson")
_CURE = 'a text that looks so goes into {"prompt": "..."}'


def objects_of(numbered: Sequence[tuple[int, str]], source: str) -> list[tuple[int, dict[str, Any]]] | None:
    """Each line's number and object; None if the lines are texts. Raises InvalidRequestError for anything else, such
    as OpenAI's batch format."""
    rows = [(number, _value_of(line)) for number, line in numbered]
    if not isinstance(rows[0][1], dict):
        _check_document(numbered, source)
    first = next((number for number, row in rows if isinstance(row, dict)), None)
    if first is None and not source.endswith(_JSONL_ENDINGS):
        _check_texts(numbered, source)
        return None
    objects = []
    for (number, row), (_, line) in zip(rows, numbered, strict=True):
        where = f"{source}, line {number}: "
        if isinstance(row, ValueError):
            other = f"; line {first} is" if first is not None else ""
            raise InvalidRequestError(f"{where}not valid JSON: {row}: {cut(line, 60)}{other}; {_CURE}")
        if not isinstance(row, dict):
            raise InvalidRequestError(
                f"{where}{cut(line, 60)} is no object, allowed is one with exactly one of {', '.join(PROMPT_KEYS)}"
            )
        if _BATCH_KEYS & row.keys() and not set(PROMPT_KEYS) & row.keys():
            key = min(_BATCH_KEYS & row.keys())
            raise InvalidRequestError(
                f"{where}the key {key!r} is of a call in OpenAI's batch format: "
                "`octavo run-batch -i INPUT -o OUTPUT` answers those"
            )
        objects.append((number, row))
    return objects


def _check_texts(numbered: Sequence[tuple[int, str]], source: str) -> None:
    """No line is a JSON object. Refuse a line that begins and ends like one."""
    for number, line in numbered:
        if line.startswith(('{"', "{'")) and line.endswith(("}", "},")):
            problem = _value_of(line)
            raise InvalidRequestError(f"{source}, line {number}: not valid JSON: {problem}: {cut(line, 60)}; {_CURE}")


def _check_document(numbered: Sequence[tuple[int, str]], source: str) -> None:
    """Refuse a file that is one JSON value: an object, or a list of objects."""
    if numbered[0][1][0] not in "[{":
        return
    whole = _value_of("\n".join(line for _, line in numbered))
    if isinstance(whole, dict) or (isinstance(whole, list) and any(isinstance(one, dict) for one in whole)):
        raise InvalidRequestError(
            f"{source} is one JSON {'object' if isinstance(whole, dict) else 'list'}, allowed is an object a line"
        )


def _value_of(line: str) -> Any:
    """The JSON value, or the ValueError that says what is wrong."""
    try:
        return json.loads(line, object_pairs_hook=_without_twins, parse_constant=_no_constant)
    except ValueError as error:
        return error
    except RecursionError:
        return ValueError("nested too deeply")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twin!r} comes twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
