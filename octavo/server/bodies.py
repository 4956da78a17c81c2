"""From a request's bytes to its struct, or an error that names the field, its value and what is allowed.

bytes ──▶ struct                                          one pass, if all fields are known and of their types
  └─ refused ──▶ dict ──▶ null and neutral values out ──▶ struct, or the error told by name

Reading takes time by values rather than by bytes, so they are counted first: a million empty lists are three megabytes
and a fifth of a second in which nothing else runs; a text of three megabytes is a millisecond. A list, an object or a
key takes as long as some ten numbers, and counts as ten.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from octavo.server.api_errors import ApiError, speaks_ollama
from octavo.server.fields_not_here import NEUTRAL, NO_EFFECT, instead_of
from octavo.shown import shown, suggestion

T = TypeVar("T", bound=msgspec.Struct)

#: bytes; a body of fewer is read in some milliseconds
_LARGE_BODY = 2**17

_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_PIECE = 2**16

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_EXPECTED = re.compile(r"Expected (?P<allowed>.+), got .+")
_MISSING = re.compile(r"Object missing required field `(\w+)`")


async def read_struct(
    request: Request, kind: type[T], max_body_bytes: int, max_body_values: int, turn: asyncio.Lock
) -> T:
    """The request's body as a struct. turn: to read a large one takes some hundredths of a second in one go, so of
    those there is one in each turn of the event loop. Raises ApiError, ClientDisconnect."""
    body = await _read(request, max_body_bytes, max_body_values)
    if len(body) <= _LARGE_BODY:
        return parse(body, kind)
    async with turn:
        try:
            return parse(body, kind)
        finally:
            await asyncio.sleep(0)


def parse(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):  # a ValidationError is a DecodeError
        return _explain(body, kind)


def _is_told_without_type(request: Request) -> bool:
    """Ollama's way, with curl: no header says JSON. A page of another origin could send such a request without being
    asked whether it may; browsers tell where it comes from."""
    return speaks_ollama(request.scope["path"]) and "origin" not in request.headers


async def _read(request: Request, max_body_bytes: int, max_body_values: int) -> bytes:
    """The body, if it is JSON and not too large. Nothing past the limit is kept."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    if not is_json and not _is_told_without_type(request):
        raise ApiError(415, f"content-type is {kind!r}, allowed is application/json: send the header with the request")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > max_body_bytes:
        raise _too_large(f"{int(length)} bytes", max_body_bytes)
    chunks: list[bytes] = []
    num_bytes, values = 0, ValueCount()
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > max_body_bytes:
            raise _too_large(f"more than {max_body_bytes} bytes", max_body_bytes)
        chunks.append(chunk)
        values.add(chunk)
    if num_values := await values.is_above(max_body_values, chunks):
        raise ApiError(
            413,
            f"the request's body holds {num_values} values or more (a list, an object and a key count as ten), allowed "
            f"are {max_body_values}: send several requests, or start the server with a larger --max-body-values",
            code="request_too_large",
        )
    return b"".join(chunks)


class ValueCount:
    """Counts while the body comes. At first what may be text counts, too."""

    def __init__(self) -> None:
        self._most = 1

    def add(self, chunk: bytes) -> None:
        self._most += _count(chunk)

    async def is_above(self, limit: int, chunks: Sequence[bytes]) -> int:
        """-> the number of values, as far as it was counted, if it is above the limit; else 0. chunks: the body."""
        if self._most <= limit:
            return 0
        count, rest, is_text = 1, b"", False
        for chunk in chunks:
            for start in range(0, len(chunk), _PIECE):
                piece = rest + chunk[start : start + _PIECE]
                num_at_end = len(piece) - len(piece.rstrip(b"\\"))
                rest = piece[-1:] if num_at_end % 2 else b""
                parts = _ESCAPED.sub(b"", piece.removesuffix(rest)).split(b'"')
                count += _count(b"".join(parts[int(is_text) :: 2]))
                is_text ^= len(parts) % 2 == 0
                if count > limit:
                    return count
                await asyncio.sleep(0)  # a piece takes a millisecond
        return 0


def _count(outside: bytes) -> int:
    return outside.count(b",") + 10 * (outside.count(b"[") + outside.count(b"{") + outside.count(b":"))


def _too_large(size: str, max_body_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the request's body has {size}, allowed are {max_body_bytes}: send less, or start the server with a larger "
        "--max-body-bytes",
        code="request_too_large",
        headers={"Connection": "close"},  # the rest of the body is not read, so nothing can follow it
    )


def _explain(body: bytes, kind: type[T]) -> T:
    """The struct after all, if what stood in its way asks for nothing; else the error, by name."""
    try:
        raw = msgspec.json.decode(body)
    except RecursionError:
        raise ApiError(400, "the request's body is nested too deeply, no request needs that", code="bad_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the request's body is not JSON in UTF-8: {error}", code="bad_json") from None
    if not isinstance(raw, dict):
        raise ApiError(400, f"the request's body is {shown(raw)}, allowed is an object", code="bad_json")
    known = set(kind.__struct_fields__)
    kept = {}
    for name, value in raw.items():
        if name in known:
            kept[name] = value
        elif name not in NO_EFFECT and value is not None:
            _check_neutral(name, value, known)
        elif name not in NO_EFFECT and name not in NEUTRAL:
            raise _unknown(name, known)
    try:
        return msgspec.convert(kept, kind)
    except msgspec.ValidationError as error:
        raise _mistyped(str(error), kept) from None


def _check_neutral(name: str, value: object, known: set[str]) -> None:
    """Refuse what asks for something that is not here; True is not 1."""
    if name not in NEUTRAL:
        raise _unknown(name, known)
    allowed = NEUTRAL[name]
    if any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in allowed):
        return
    nothing = " or ".join(["leaving it out", *(msgspec.json.encode(one).decode() for one in allowed)])
    instead = instead_of(name)
    raise ApiError(
        400,
        f"{name} is {shown(value)}, which this engine does not support; allowed is {nothing}"
        + (f": {instead}" if instead else ""),
        param=name,
        code="unsupported_parameter",
    )


def _unknown(name: str, known: set[str]) -> ApiError:
    message = f"there is no parameter {shown(name)}; {suggestion(name, known)}"
    return ApiError(400, message, param=name[:64], code="unknown_parameter")


def _mistyped(message: str, raw: dict[str, Any]) -> ApiError:
    """msgspec's words with the value in them."""
    match = _PLACE.match(message)
    assert match is not None, "the pattern matches any text"
    what, path = match["what"], match["path"] or ""
    if (missing := _MISSING.match(what)) is not None:
        name = f"{path}.{missing[1]}".lstrip(".")
        return ApiError(400, f"{name} is missing, it is required", param=name, code="missing_required_parameter")
    param = re.split(r"[.\[]", path)[0]
    expected = _EXPECTED.match(what)
    if expected is None or not path:
        return ApiError(400, f"{path or 'the body'}: {what}", param=param or None, code="invalid_value")
    allowed = expected["allowed"].replace("`", "").replace(" | ", " or ")
    return ApiError(400, f"{path} is {shown(_at(raw, path))}, allowed is {allowed}", param=param, code="invalid_type")


def _at(raw: Any, path: str) -> object:
    """The value at `a[3].b`; what is inside `a` where the path says only [...]."""
    value = raw
    for key, index in re.findall(r"(\w+)|\[(\d+|\.\.\.)\]", path):
        if index == "...":
            return value
        value = value[int(index)] if index else value[key]
    return value
