"""Who may call: the keys of a server, and whose key a request brought.

A server with keys wants one with every call:

    programs    Authorization: Bearer KEY, or x-api-key: KEY
    browsers    cannot send these when they open a page. They ask for a password, which is the key (HTTP Basic), and
                send it with all further requests of that page

Another site's page can make a browser send the password too, but gains nothing: it cannot read the answers, and the
routes that generate tokens are POSTs that, with a page's Origin, must be application/json, which no page may send to
another server without asking it first.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.api_errors import ApiError, error_response

#: paths that load balancers call without a key
OPEN_PATHS = frozenset({"/health", "/ping"})
#: pages that people open in a browser; elsewhere the browser's password dialog would cover a page whose call failed
PAGES = frozenset({"/", "/docs"})
_HOW = "send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
#: where a request's scope says whose key it brought
_OWNER = "octavo.owner"


def owner_of(request: Request) -> str:
    """Whose key the request brought: a digest of it; "" on a server without keys."""
    return str(request.scope.get(_OWNER, ""))


class RequireKey:
    """Middleware that answers 401 to requests without a key. Keys are kept as digests and compared in a time that does
    not depend on how much of a key was right."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_call = scope["type"] == "http"  # the router refuses websockets
        if not is_call or _path(scope) in OPEN_PATHS:
            await self._app(scope, receive, send)
        elif known := self._known(_keys(Headers(scope=scope))):
            await self._app({**scope, _OWNER: known[0].hex()}, receive, send)
        else:
            await error_response(_refusal(_path(scope)), scope["path"])(scope, receive, send)

    def _known(self, keys: list[str]) -> list[bytes]:
        """The digests of those that are right. Compares all with all, to take the same time whichever they are."""
        digests = [_digest(key) for key in keys]
        return [digest for digest in digests if sum(hmac.compare_digest(digest, known) for known in self._digests)]


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _refusal(path: str) -> ApiError:
    challenge, how = "Bearer", _HOW
    if path in PAGES:
        challenge, how = 'Basic realm="Octavo", charset="UTF-8"', f"{_HOW}, or in a browser as the password of any user"
    message = f"the request has no valid API key; {how}"
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": challenge})


def _keys(headers: Headers) -> list[str]:
    """All that may be keys: a proxy's own password may be in Authorization, and the key in x-api-key."""
    kind, _, credentials = headers.get("authorization", "").partition(" ")
    credentials = credentials.strip()
    keys = [headers.get("x-api-key")]
    if kind.lower() == "bearer":
        keys.append(credentials)
    elif kind.lower() == "basic":
        keys.append(_password(credentials))
    return [key for key in keys if key]


def _password(credentials: str) -> str | None:
    """The password in base64("user:password"); None if it is anything else."""
    try:
        return base64.b64decode(credentials, validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
