"""Keys: whoever calls must bring one, if the server has any.

    programs    Authorization: Bearer KEY, or x-api-key: KEY
    browsers    cannot send these when they open a page: they are asked for a password, which is the key (HTTP Basic),
                and send it again by themselves with whatever the page asks of this server

What a browser sends by itself, another site's page could make it send. It gains nothing: it cannot read the answers,
and whatever makes tokens is a POST of application/json, which no page may send to a foreign server unasked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.errors import ApiError, error_response

#: what a load balancer asks
OPEN_PATHS = frozenset({"/health", "/ping"})
#: what a person opens in a browser. Elsewhere no password is asked for: a page whose call fails would be covered by it
PAGES = frozenset({"/", "/docs"})
_HOW = "send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"


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
