"""ApiError: a call that failed, and the shape that OpenAI's, Anthropic's and Ollama's clients expect of its error."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from octavo.errors import EngineBusyError, EngineDeadError, InvalidRequestError, TokenizerError

logger = logging.getLogger(__name__)

JSON = "application/json"

#: status -> OpenAI's type of error, Anthropic's
_TYPES: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    404: ("not_found_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    503: ("server_error", "overloaded_error"),
}


#: advice to those whose prompt is too long, where their API has this field
OR_CUT = " or set truncate_prompt_tokens"


class ApiError(Exception):
    """A call that ends with this status. param: the field at fault. code: OpenAI's name for the reason."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def openai_body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self._type(0), "param": self.param, "code": self.code}}

    def anthropic_body(self) -> dict[str, Any]:
        return {"type": "error", "error": {"type": self._type(1), "message": self.message.replace(OR_CUT, "")}}

    def ollama_body(self) -> dict[str, Any]:
        return {"error": self.message.replace(OR_CUT, "")}

    def _type(self, api: int) -> str:
        return _TYPES.get(self.status, _TYPES[400 if self.status < 500 else 500])[api]


def bad_field(field: str, problem: str, code: str | None = None) -> ApiError:
    """The refusal of one field, or of a place inside it such as `messages[3].role`, which opens the message."""
    return ApiError(400, f"{field} {problem}", param=field.partition(".")[0].partition("[")[0], code=code)


def as_api_error(error: Exception) -> ApiError:
    """The error with its status. An unforeseen one is logged here and reported without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, (InvalidRequestError, TokenizerError)):
        return ApiError(400, str(error), param=_field_named_first(str(error)))
    if isinstance(error, EngineBusyError):
        retry_after = str(max(1, math.ceil(error.retry_after_s)))
        return ApiError(503, str(error), code="engine_overloaded", headers={"Retry-After": retry_after})
    if isinstance(error, EngineDeadError):
        return ApiError(503, f"{error}; try again when /health answers 200", code="engine_unavailable")
    logger.error("a request failed in the server", exc_info=error)
    return ApiError(500, "the server failed at this request; its log says why", code="internal_error")


def error_response(error: ApiError, path: str) -> Response:
    """The error as the clients of this path expect it."""
    if speaks_ollama(path):
        body = error.ollama_body()
    elif path == "/v1/messages" or path.startswith("/v1/messages/"):
        body = error.anthropic_body()
    else:
        body = error.openai_body()
    return Response(msgspec.json.encode(body), error.status, error.headers, JSON)


def speaks_ollama(path: str) -> bool:
    return path.startswith("/api/")


def _field_named_first(message: str) -> str | None:
    """The engine's messages about a field open with its name: "seed is 1.5, allowed is ..."."""
    name, _, rest = message.partition(" ")
    field = name.partition(".")[0]  # structured_outputs.json
    opens = rest.startswith(("is ", "holds ")) or field == "structured_outputs"
    return field if opens and field.split("[")[0].isidentifier() else None
