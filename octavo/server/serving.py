"""Serving: what every route needs: the engine, the settings, request ids, and how answers are sent.

X-Request-Id of the request ──┐
request_id in its body ───────┴──▶ the call's id ──▶ id of the answer, X-Request-Id where the server is asked to tell it
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.engine.llm_engine import EngineClient
from octavo.outputs import RequestOutput
from octavo.server.api_errors import JSON, ApiError
from octavo.server.bodies import read_struct
from octavo.server.json_pieces import json_pieces
from octavo.server.protocol import ModelRequest
from octavo.server.room import Lanes, LogprobRoom
from octavo.server.settings import ServerSettings
from octavo.server.streaming import Events, EventStream
from octavo.shown import shown
from octavo.text.tokenizer import Tokenizer

REQUEST_ID_HEADER = "x-request-id"
#: tokens, log-probabilities and sixteenths of characters; an answer of fewer is encoded in a millisecond or two
SMALL_ANSWER = 2048

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T", bound=ModelRequest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """created: when the server started, in seconds since 1970. lanes: where what takes long is done. logprob_room: what
    answers that are being made may hold. body_turn: of large bodies to be read."""

    client: EngineClient
    settings: ServerSettings
    created: int
    logprob_room: LogprobRoom
    lanes: Lanes = field(default_factory=Lanes)
    body_turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def read(self, request: Request, kind: type[T]) -> T:
        """The request's body, checked for shape, with the name of a model that is served."""
        asked = await self.read_body(request, kind)
        names = self.settings.served_model_name
        if asked.model is None:
            asked.model = names[0]
        if asked.model not in names:
            raise ApiError(
                404,
                f"the model {shown(asked.model)} is not served here; allowed is {' or '.join(map(repr, names))}",
                param="model",
                code="model_not_found",
            )
        return asked

    async def read_body(self, request: Request, kind: type[S]) -> S:
        """The request's body, checked for shape alone."""
        return await read_struct(
            request, kind, self.settings.max_body_bytes, self.settings.max_body_values, self.body_turn
        )

    def event_stream(
        self, outputs: AsyncGenerator[RequestOutput], events: Events, headers: Mapping[str, str]
    ) -> EventStream:
        return EventStream(outputs, events, headers, self.settings.sse_keep_alive_interval, self.lanes)

    def id_headers(self, known_as: str) -> dict[str, str]:
        """known_as: what request_id gave the call."""
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


def request_id(request: Request, asked: str | None) -> str:
    """The request's own, its header's, or a new one."""
    given = asked if asked is not None else request.headers.get(REQUEST_ID_HEADER)
    if given is None:
        return uuid.uuid4().hex
    if not is_request_id(given):
        raise ApiError(
            400,
            f"request_id is {shown(given)}, allowed are 1 to 128 visible ASCII characters",
            param="request_id",
        )
    return given


def is_request_id(given: str) -> bool:
    return re.fullmatch(r"[\x21-\x7e]{1,128}", given) is not None


def json_response(body: msgspec.Struct, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), headers=headers, media_type=JSON)


def installed_version() -> str:
    """The package's version. octavo/__init__.py has it too, but may not be imported from here."""
    try:
        return importlib.metadata.version("octavo")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


async def answer(
    serving: Serving, size: int, make: Callable[[], msgspec.Struct], headers: Mapping[str, str] | None = None
) -> Response:
    """The response with what `make` returns: if large, made on a thread and sent in pieces, so that the event loop
    stays free. size: about, in the units of SMALL_ANSWER."""
    if size <= SMALL_ANSWER:
        return Response(b"".join(json_pieces(make())), headers=headers, media_type=JSON)
    return _Pieces(await serving.lanes.run("answers", lambda: list(json_pieces(make()))), headers)


class _Pieces(Response):
    """A response of known length whose body is sent piece by piece, as fast as the client reads it."""

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
