"""Answers to calls of routes that are not there, or not for their method: what was likely meant, and what there is."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from octavo.server.api_errors import ApiError, error_response
from octavo.shown import shown

_LISTED_AT = "/openapi.json"


async def no_such_route(request: Request, error: Exception) -> Response:
    """The router's own errors, in the shape of all others."""
    assert isinstance(error, HTTPException), "this handler is for the router's errors"
    path, routes = request.scope["path"], [one for one in request.app.routes if isinstance(one, Route)]
    message, headers = str(error.detail), error.headers
    if error.status_code == 404:
        message = f"there is no {shown(path)} here; {_meant(path, [one.path for one in routes])}"
    elif error.status_code == 405:
        found = [one.methods or () for one in routes if one.matches(request.scope)[0] is not Match.NONE]
        allowed = ", ".join(sorted({method for methods in found for method in methods}))
        message, headers = f"{shown(path)} is not for {request.method}, allowed is {allowed}", {"allow": allowed}
    return error_response(ApiError(error.status_code, message, headers=headers), path)


def _meant(path: str, known: Collection[str]) -> str:
    """What a caller of an unknown path may have wanted. Clients of OpenAI's API have a base URL that ends in /v1, and
    those of Anthropic's one that does not."""
    if (longer := f"/v1{path}") in known:
        return f"did you mean {longer}? let the client's base URL end in /v1"
    if (shorter := path.removeprefix("/v1")) != path and shorter in known:
        return f"did you mean {shorter}? leave /v1 out of the client's base URL"
    if close := difflib.get_close_matches(path[:64], known, 1, cutoff=0.8):
        return f"did you mean {close[0]}?"
    return f"see {_LISTED_AT}" if _LISTED_AT in known else "the documentation lists the routes"
