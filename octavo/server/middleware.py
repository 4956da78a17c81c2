"""What stands before the routes, each if the server is asked to have it: keys, requests' ids, a proxy's path.

Whoever calls must bring a key:

    programs    Authorization: Bearer KEY, or x-api-key: KEY
    browsers    cannot send these when they open a page: they are asked for a password, which is the key (HTTP Basic),
                and send it again by themselves with whatever the page asks of this server

What a browser sends by itself, another site's page could make it send. It gains nothing: it cannot read the answers,
and whatever makes tokens is a POST that, where it has an Origin as a page's has, must be application/json: no page may
send that to a foreign server unasked.

A server may be shown under a path of a proxy's, whether the proxy cuts that path or leaves it:

    https://example.org/llm/v1/models ──▶ proxy ──▶ /llm/v1/models or /v1/models ──▶ /v1/models
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import uuid
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.api_errors import ApiError, error_response
from octavo.server.serving import REQUEST_ID_HEADER, is_request_id

#: what a load balancer asks
OPEN_PATHS = frozenset({"/health", "/ping"})
#: what a person opens in a browser. Elsewhere no password is asked for: a page whose call fails would be covered by it
PAGES = frozenset({"/", "/docs"})
_HOW = "send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"


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
        told = given if given is not None and is_request_id(given) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(REQUEST_ID_HEADER, told)
            await send(message)

        if given is None:  # so that the call is known by the id that is told
            scope = {**scope, "headers": [*scope["headers"], (REQUEST_ID_HEADER.encode(), told.encode())]}
        await self._app(scope, receive, send_with_id)


class CutRootPath:
    """Middleware; what is behind it knows its own paths only."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if path == self._root_path or path.startswith(f"{self._root_path}/"):
            scope = {**scope, "path": path[len(self._root_path) :] or "/"}
        await self._app(scope, receive, send)


class RequireKey:
    """Middleware that answers 401 to requests without a key. Keys are kept as digests and compared in a time that
    does not depend on how much of one was right."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_call = scope["type"] == "http"  # there are no websockets, and the router turns them away
        if not is_call or _path(scope) in OPEN_PATHS or self._knows_one_of(_keys(Headers(scope=scope))):
            await self._app(scope, receive, send)
            return
        await error_response(_refusal(_path(scope)), scope["path"])(scope, receive, send)

    def _knows_one_of(self, keys: list[str]) -> bool:
        """All are compared with all, whichever is right."""
        digests = [_digest(key) for key in keys]
        return sum(hmac.compare_digest(digest, known) for digest in digests for known in self._digests) > 0


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _refusal(path: str) -> ApiError:
    challenge, how = "Bearer", _HOW
    if path in PAGES:
        challenge, how = 'Basic realm="Octavo", charset="UTF-8"', f"{_HOW}, or in a browser as the password of any user"
    message = f"the request brings no valid API key; {how}"
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": challenge})


def _keys(headers: Headers) -> list[str]:
    """What may be one. A proxy's own password may stand where ours would, beside a key in x-api-key."""
    kind, _, said = headers.get("authorization", "").partition(" ")
    said = said.strip()
    keys = [headers.get("x-api-key")]
    if kind.lower() == "bearer":
        keys.append(said)
    elif kind.lower() == "basic":
        keys.append(_password(said))
    return [key for key in keys if key]


def _password(credentials: str) -> str | None:
    """Of base64("user:password"); None of anything else."""
    try:
        return base64.b64decode(credentials, validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
