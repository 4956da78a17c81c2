"""A call of an ASGI application without a server in between: what a client would have sent and would have got."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Scope


@dataclass(frozen=True, slots=True)
class AppReply:
    """headers: names in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def post_json(app: ASGIApp, path: str, body: bytes, headers: Mapping[str, str]) -> AppReply:
    """POST a body of JSON; the whole answer. Being cancelled ends the call as a client does that goes away."""
    is_sent = False
    start: Message = {}
    pieces: list[bytes] = []

    async def receive() -> Message:
        nonlocal is_sent
        if is_sent:
            await asyncio.Event().wait()  # this client stays until it is answered
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
        else:
            pieces.append(message.get("body", b""))

    await app(_scope(path, {"content-type": "application/json", **headers}), receive, send)
    assert start, "an application answers every call"
    told = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
    return AppReply(start["status"], told, b"".join(pieces))


def _scope(path: str, headers: Mapping[str, str]) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        "client": None,
        "server": None,
    }
