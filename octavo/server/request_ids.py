"""Which call is which: the id that a request brings or gets, told back in X-Request-Id where the server is asked to.

X-Request-Id of the request ──┐
request_id in its body ───────┴──▶ the call's id ──▶ id of the answer, X-Request-Id of the response
"""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.errors import ApiError
from octavo.server.serving import Serving
from octavo.shown import shown

REQUEST_ID_HEADER = "x-request-id"

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def request_id(request: Request, asked: str | None) -> str:
    """The request's own, its header's, or a new one."""
    given = asked if asked is not None else request.headers.get(REQUEST_ID_HEADER)
    if given is None:
        return uuid.uuid4().hex
    if not _REQUEST_ID.fullmatch(given):
        raise ApiError(
            400,
            f"request_id is {shown(given)}, allowed are 1 to 128 visible ASCII characters",
            param="request_id",
        )
    return given


def id_headers(serving: Serving, known_as: str) -> dict[str, str]:
    """known_as: what request_id gave the call."""
    return {REQUEST_ID_HEADER: known_as} if serving.settings.enable_request_id_headers else {}


class TellRequestId:
    """Middleware that puts an id on every response, refusals by whatever is behind it included: the request's own,
    or a new one. A route that knows the call by another name has put that there already."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER)
        is_good = given is not None and _REQUEST_ID.fullmatch(given) is not None
        told = given if given is not None and is_good else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(REQUEST_ID_HEADER, told)
            await send(message)

        if given is None:  # so that the call is known by the id that is told
            scope = {**scope, "headers": [*scope["headers"], (REQUEST_ID_HEADER.encode(), told.encode())]}
        await self._app(scope, receive, send_with_id)
