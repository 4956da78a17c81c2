"""Keys: whoever calls must bring one, if the server has any."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.errors import ApiError, error_response

#: what a load balancer asks, and the page, which holds nothing and is where a key can be typed in
OPEN_PATHS = frozenset({"/health", "/ping", "/"})


class RequireKey:
    """Middleware that answers 401 to requests without a key. Keys are kept as digests and compared in a time that
    does not depend on how much of one was right."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_call = scope["type"] == "http"  # there are no websockets, and the router turns them away
        if not is_call or _is_open(scope) or self._knows(_key(Headers(scope=scope))):
            await self._app(scope, receive, send)
            return
        message = "the request brings no valid API key; send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        error = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await error_response(error, scope["path"])(scope, receive, send)

    def _knows(self, key: str | None) -> bool:
        """All keys are compared, whichever is right."""
        digest = _digest(key or "")
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0 and key is not None


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) in OPEN_PATHS


def _key(headers: Headers) -> str | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key:
        return key.strip()
    return headers.get("x-api-key")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
