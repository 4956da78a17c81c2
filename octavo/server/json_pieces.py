"""Large answers as JSON, a piece at a time.

An encoder keeps Python's lock until it is done, a third of a second for a hundred megabytes. Here lists and texts that
are long are cut, and what is between two pieces may be anything: another thread's work, or sending the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode

#: numbers and short texts a piece; a millisecond or two
_FEW_PLAIN = 16384
#: others a piece, if none of them is wide
_FEW_OTHERS = 16
#: items that make a list, or an object, wide: it is cut itself
_WIDE = 32
#: characters a piece
_SHORT_TEXT = 2**18
_SMALL_PIECE = 2**16


class LazyList(Generic[T]):
    """A list in JSON whose items are made one at a time, and are gone when they are encoded. Read once."""

    def __init__(self, items: Iterable[T]) -> None:
        self.items = items


def json_pieces(value: Any) -> Iterator[bytes]:
    """What joined is the JSON of a value made of structs, dicts with texts for keys, lists (lazy ones, too) and
    plain values. Small parts come together."""
    parts: list[bytes] = []
    size = 0
    for part in _parts(value):
        parts.append(part)
        size += len(part)
        if size >= _SMALL_PIECE:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, msgspec.Struct):
        fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
        yield from _object((name, one) for name, one in fields if one is not UNSET)
    elif isinstance(value, dict):
        yield from _object(value.items())
    elif isinstance(value, list):
        yield from _list(_plain_cut(value) if _is_plain(value) else _cut(value))
    elif isinstance(value, LazyList):
        yield from _list(_cut(value.items))
    elif isinstance(value, str) and len(value) > _SHORT_TEXT:
        yield b'"'
        for start in range(0, len(value), _SHORT_TEXT):
            yield _encode(value[start : start + _SHORT_TEXT])[1:-1]
        yield b'"'
    else:
        yield _encode(value)


def _object(items: Iterable[tuple[str, Any]]) -> Iterator[bytes]:
    before = b"{"
    for name, value in items:
        yield before + _encode(name) + b":"
        yield from _parts(value)
        before = b","
    yield b"{}" if before == b"{" else b"}"


def _list(cut: Iterable[list[Any]]) -> Iterator[bytes]:
    """cut: items to encode at once; what is wide comes alone."""
    before = b"["
    for few in cut:
        yield before
        if len(few) == 1 and _is_wide(few[0]):
            yield from _parts(few[0])
        else:
            yield _encode(few)[1:-1]
        before = b","
    yield b"[]" if before == b"[" else b"]"


def _plain_cut(values: list[Any]) -> Iterator[list[Any]]:
    return (values[start : start + _FEW_PLAIN] for start in range(0, len(values), _FEW_PLAIN))


def _cut(values: Iterable[Any]) -> Iterator[list[Any]]:
    few: list[Any] = []
    for value in values:
        if _is_wide(value):
            if few:
                yield few
            yield [value]
            few = []
        else:
            few.append(value)
            if len(few) == _FEW_OTHERS:
                yield few
                few = []
    if few:
        yield few


def _is_plain(values: list[Any]) -> bool:
    """As lists in answers are of one kind, the first tells of all. Many texts are tokens, which are short."""
    first = next((one for one in values if one is not None), None)
    return first is None or isinstance(first, (int, float)) or (isinstance(first, str) and len(values) > _WIDE)


def _is_wide(value: Any) -> bool:
    if isinstance(value, msgspec.Struct):
        return any(_is_wide(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, str):
        return len(value) > _SHORT_TEXT
    return isinstance(value, LazyList) or (isinstance(value, (list, dict)) and len(value) > _WIDE)
