"""Whole answers as JSON; large ones in pieces, made on a thread and sent one by one.

An encoder holds Python's lock until it is done: a third of a second for a hundred megabytes. So long lists and texts
are cut here, and between two pieces other threads run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.server.api_errors import JSON
from octavo.server.streaming import Lanes

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode

#: tokens, log-probabilities and sixteenths of characters; encoding a smaller answer takes a millisecond or two
SMALL_ANSWER = 2048
_FEW_PLAIN = 16384  # numbers and short texts in a piece; a millisecond or two
_FEW_OTHERS = 16  # other items in a piece, if none is wide
_WIDE = 32  # items; a longer list or object is wide: it is cut itself
_SHORT_TEXT = 2**18  # characters in a piece
_SMALL_PIECE = 2**16  # bytes; smaller pieces are joined


class LazyList(Generic[T]):
    """A JSON list whose items are made, encoded and dropped one at a time. Can be read once."""

    def __init__(self, items: Iterable[T]) -> None:
        self.items = items


async def answer(
    lanes: Lanes, size: int, make: Callable[[], msgspec.Struct], headers: Mapping[str, str] | None = None
) -> Response:
    """The response with the result of `make`. size: about, in the units of SMALL_ANSWER; a large answer is made on a
    thread and sent in pieces, so that the event loop stays free."""
    if size <= SMALL_ANSWER:
        return Response(b"".join(json_pieces(make())), headers=headers, media_type=JSON)
    return _Pieces(await lanes.run("answers", lambda: list(json_pieces(make()))), headers)


class _Pieces(Response):
    """A response of known length, sent piece by piece as fast as the client reads."""

    def __init__(self, pieces: list[bytes], headers: Mapping[str, str] | None) -> None:
        self._pieces = pieces
        self.status_code = 200
        self.background = None
        self.body = b""
        length = sum(map(len, pieces))
        self.init_headers({**(headers or {}), "content-type": JSON, "content-length": str(length)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pieces, self._pieces = self._pieces, []
        pieces.reverse()
        while pieces:
            await send({"type": "http.response.body", "body": pieces.pop(), "more_body": bool(pieces)})


def json_pieces(value: Any) -> Iterator[bytes]:
    """Pieces of the JSON of a value made of structs, dicts with string keys, lists, LazyLists and plain values."""
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
    """cut: items to encode together; a wide one comes alone."""
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
    """The lists of answers hold one kind of item, so the first decides. Many texts are tokens, which are short."""
    first = next((one for one in values if one is not None), None)
    return first is None or isinstance(first, (int, float)) or (isinstance(first, str) and len(values) > _WIDE)


def _is_wide(value: Any) -> bool:
    if isinstance(value, msgspec.Struct):
        return any(_is_wide(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, str):
        return len(value) > _SHORT_TEXT
    return isinstance(value, LazyList) or (isinstance(value, (list, dict)) and len(value) > _WIDE)
