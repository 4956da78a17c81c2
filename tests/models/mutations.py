"""Hostile or damaged files, drawn from a seed.

A JSON document is changed as a tree (a value of another type; a key missing, duplicated or misspelt; nesting too deep)
or as bytes (cut, flipped, in another encoding). The same seed always gives the same file.
"""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

#: Values that some reader once accepted as a name, a size, a number or an object.
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400),
    *(0.0, -0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "4", "\ud800", "\0", "../x", "x" * 5000, "NaN"),
    *([], [[]], [None], [0], [-1, "a"], ["a"] * 3, {}, {"a": []}, {"": {}}, [{}], [{"name": []}]),
)


def mutated_json(rng: random.Random, document: Any) -> bytes:
    """The document's file, changed in one to three places."""
    tree = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = _changed_tree(rng, tree)
    content = _with_twins(rng, json.dumps(tree, ensure_ascii=rng.random() < 0.9)).encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, content) if rng.random() < 0.15 else content


def mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    """The bytes, cut, flipped, or in an unexpected encoding."""
    kind = rng.randrange(6)
    if kind == 0:
        return content[: rng.randrange(len(content) + 1)]
    if kind == 1:
        return b"\xef\xbb\xbf" + content
    if kind == 2:
        return content.decode("utf-8", "replace").encode("utf-16")
    changed = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.choice((0, 0xFF, 0x80, ord("["), ord("9"), rng.randrange(256)))
    return bytes(changed)


def _changed_tree(rng: random.Random, tree: Any) -> Any:
    places = list(_places(tree))
    if not places or rng.random() < 0.02:
        return _hostile(rng)
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.65:
        holder[key] = _hostile(rng)
    elif kind < 0.75:
        del holder[key]
    elif kind < 0.85:
        holder[key] = _scaled(rng, holder[key])
    elif kind < 0.9:
        for _ in range(rng.choice((3, 40, 300))):
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    else:
        other, other_key = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[other_key]))
    return tree


def _scaled(rng: random.Random, value: Any) -> Any:
    """A value of the same type that may be invalid."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        narrow = float(value) if abs(value) < 2**63 else 0.5
        return rng.choice((value + 1, value - 1, value * 2, value // 2, -value, value * 10**6, narrow))
    if isinstance(value, float):
        return rng.choice((-value, value * 1e30, value * 1e-30, 1 / value if value else 1.0, str(value)))
    if isinstance(value, str):
        return rng.choice((value + "x", value[::-1], value.upper(), value[:-1], [value], {"content": value}))
    if isinstance(value, list):
        return rng.choice((value[:-1], value + value, value[::-1], {str(i): item for i, item in enumerate(value)}))
    return list(value.values()) if isinstance(value, dict) else value


def _hostile(rng: random.Random) -> Any:
    return deepcopy(rng.choice(HOSTILE))  # copied, since later changes to the document may modify it


def _places(tree: Any) -> Any:
    """Every (holder, key) of a document."""
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, value in list(items):
            yield holder, key
            waiting.append(value)


def _with_twins(rng: random.Random, text: str) -> str:
    """The text, sometimes with a duplicate key."""
    if rng.random() < 0.97 or not text.startswith('{"'):
        return text
    key = text[1 : text.index('"', 2) + 1]
    return f"{{{key}: {json.dumps(_hostile(rng))}, {text[1:]}"
