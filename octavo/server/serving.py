"""Serving: what every route shares: the engine, the settings, and how a call is read.

bytes ──▶ number of values ──▶ struct ──▶ route ──▶ response, or an error in the words of the path's API
                                 └─ refused by msgspec ──▶ bodies.py: read without its neutral fields, or explained

X-Request-Id of the request ──┐
request_id in its body ───────┴──▶ the call's id ──▶ id of the answer, and X-Request-Id if the server is set to send it

Decoding time grows with the number of values, not bytes, and blocks the event loop: a million empty lists are three
megabytes and a fifth of a second; a text of three megabytes takes a millisecond. So values are counted first. A list,
an object or a key takes as long as about ten numbers, and counts as ten.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from octavo.engine.llm_engine import EngineClient
from octavo.lora_request import LoRARequest
from octavo.server.adapter_names import AdapterNames
from octavo.server.answers import AnswerReader
from octavo.server.api_errors import JSON, ApiError, as_api_error, bad_field, error_response, speaks_ollama
from octavo.server.bodies import explain
from octavo.server.logprob_room import LogprobRoom
from octavo.server.protocol import ModelRequest
from octavo.server.responses.store import ResponseStore
from octavo.server.session_store import SessionStore
from octavo.server.settings import ServerSettings
from octavo.server.streaming import CLIENT_CLOSED_REQUEST, Events, EventStream, Lanes
from octavo.shown import shown
from octavo.text.tokenizer import Tokenizer

REQUEST_ID_HEADER = "x-request-id"

_CLOSE = {"Connection": "close"}  # the rest of the body is not read, so nothing can follow it
_LARGE_BODY = 2**17  # bytes; decoding a smaller body takes a few milliseconds
_PIECE = 2**16
_ESCAPED = re.compile(rb"\\.", re.DOTALL)

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T", bound=ModelRequest)
O = TypeVar("O")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """created: when the server started, in seconds since 1970. adapters: their names are models, too. lanes: threads
    for long work. logprob_room: limits the log-probabilities held by all answers together. sessions: those of this
    front end. responses: those that are kept. answers: how the model writes thoughts and calls. body_turn: held while a
    large body is decoded."""

    client: EngineClient
    settings: ServerSettings
    created: int
    logprob_room: LogprobRoom
    sessions: SessionStore
    responses: ResponseStore
    answers: AnswerReader
    adapters: AdapterNames
    lanes: Lanes
    body_turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def read(self, request: Request, kind: type[T]) -> T:
        """The request's body, checked for shape and for the name of a served model."""
        asked = await self.read_body(request, kind)
        names = self.settings.served_model_name
        if asked.model is None:
            asked.model = names[0]
        if asked.model not in names and await self.adapters.find(asked.model) is None:
            more = ", or an adapter of /v1/models" if self.client.model_info.enable_lora else ""
            raise ApiError(
                404,
                f"the model {shown(asked.model)} is not served here; allowed is {' or '.join(map(repr, names))}{more}",
                param="model",
                code="model_not_found",
            )
        return asked

    def adapter(self, model: str | None) -> LoRARequest | None:
        """The adapter that a name stands for, which `read` has found; None: it names the model itself."""
        is_base = model is None or model in self.settings.served_model_name
        return None if is_base or model is None else LoRARequest(model, 1)

    async def read_body(self, request: Request, kind: type[S]) -> S:
        """The request's body, checked for shape alone. Each turn of the event loop decodes one large body at most.
        Raises ApiError, ClientDisconnect."""
        body = await _read(request, self.settings)
        if len(body) <= _LARGE_BODY:
            return parse(body, kind)
        async with self.body_turn:
            try:
                return parse(body, kind)
            finally:
                await asyncio.sleep(0)

    def event_stream(self, outputs: AsyncGenerator[O], events: Events[O], headers: Mapping[str, str]) -> EventStream[O]:
        return EventStream(outputs, events, headers, self.settings.sse_keep_alive_interval, self.lanes)

    def id_headers(self, known_as: str) -> dict[str, str]:
        """known_as: the call's id, from request_id()."""
        return {REQUEST_ID_HEADER: known_as} if self.settings.enable_request_id_headers else {}

    def tokenizer(self, purpose: str) -> Tokenizer:
        tokenizer = self.client.get_tokenizer()
        if tokenizer is None:
            raise ApiError(
                400,
                f"{purpose} needs a tokenizer, and the server runs with skip_tokenizer_init: send token ids to "
                "/v1/completions instead",
            )
        return tokenizer


Endpoint = Callable[[Request, Serving], Awaitable[Response]]


def route(endpoint: Endpoint, serving: Serving) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint as FastAPI calls it; every exception becomes a response."""

    async def call(request: Request) -> Response:
        try:
            return await endpoint(request, serving)
        except ClientDisconnect:  # while it was still sending
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except Exception as error:
            return error_response(as_api_error(error), request.scope["path"])

    return call


def request_id(request: Request, asked: str | None) -> str:
    """The id in the body, in the header, or a new one."""
    given = asked if asked is not None else request.headers.get(REQUEST_ID_HEADER)
    if given is None:
        return uuid.uuid4().hex
    if not is_request_id(given):
        raise bad_field("request_id", f"is {shown(given)}, allowed are 1 to 128 visible ASCII characters")
    return given


def is_request_id(given: str) -> bool:
    return re.fullmatch(r"[\x21-\x7e]{1,128}", given) is not None


def json_response(body: object, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), headers=headers, media_type=JSON)


def parse(body: bytes, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):  # a ValidationError is a DecodeError
        return explain(body, kind)


async def _read(request: Request, settings: ServerSettings) -> bytes:
    """The body, if it is JSON and not too large. Nothing past the limit is kept."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    if not is_json and not _may_omit_type(request):
        raise ApiError(415, f"content-type is {kind!r}, allowed is application/json: send the header with the request")
    most = settings.max_body_bytes
    length = request.headers.get("content-length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > most:
        raise _too_large(f"has {int(length)} bytes", most, "--max-body-bytes", _CLOSE)
    chunks: list[bytes] = []
    num_bytes, values = 0, ValueCount()
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > most:
            raise _too_large(f"has more than {most} bytes", most, "--max-body-bytes", _CLOSE)
        chunks.append(chunk)
        values.add(chunk)
    if num_values := await values.is_above(settings.max_body_values, chunks):
        size = f"holds {num_values} values or more (a list, an object and a key count as ten)"
        raise _too_large(size, settings.max_body_values, "--max-body-values")
    return b"".join(chunks)


def _may_omit_type(request: Request) -> bool:
    """Ollama's users call it with curl and no JSON header. A page of another origin could send such a request without
    the browser asking the server first, but then the browser adds an Origin."""
    return speaks_ollama(request.scope["path"]) and "origin" not in request.headers


def _too_large(size: str, most: int, option: str, headers: Mapping[str, str] | None = None) -> ApiError:
    problem = f"the request's body {size}, allowed are {most}: send less, or start the server with a larger {option}"
    return ApiError(413, problem, code="request_too_large", headers=headers)


class ValueCount:
    """Counts a body's values while it arrives: first an upper bound, which takes characters inside texts for values."""

    def __init__(self) -> None:
        self._most = 1

    def add(self, chunk: bytes) -> None:
        self._most += _count(chunk)

    async def is_above(self, limit: int, chunks: Sequence[bytes]) -> int:
        """-> how many values were counted once they exceed the limit; else 0. chunks: the body."""
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
