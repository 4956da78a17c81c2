"""Bodies and answers of the sessions' routes."""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo.server.answer_bodies import CompletionResponse
from octavo.server.protocol import GenerationRequest, ModelRequest


class SessionRequest(ModelRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/sessions. prompt: a text or token ids."""

    prompt: str | list[int]
    cache_salt: str | None = None


class SessionForkRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/sessions/{id}/fork."""

    n: int
    branch: int | None = None


class SessionExtendRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/sessions/{id}/extend: a text or token ids."""

    text: str | None = None
    token_ids: list[int] | None = None
    branch: int | None = None


class SessionPruneRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/sessions/{id}/prune."""

    branch: int


class SessionGenerateRequest(GenerationRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/sessions/{id}/generate: the fields of completions; those about prompts are refused."""

    branches: list[int] | None = None
    logprobs: int | None = None


class SessionBranch(msgspec.Struct, kw_only=True):
    """token_ids, text: where the session is read with GET."""

    branch: int
    num_tokens: int
    token_ids: list[int] | None = None
    text: str | None = None


class SessionResponse(msgspec.Struct, kw_only=True):
    """forked: the branches with the same tokens, after a fork."""

    id: str
    object: Literal["session"] = "session"
    created: int
    model: str
    branches: list[SessionBranch]
    forked: list[int] | None = None


class SessionDeleted(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["session.deleted"] = "session.deleted"
    deleted: bool = True


#: as in openapi.py: the request's struct, the answer's, and whether it may stream
BODIES: dict[str, tuple[type[msgspec.Struct] | None, type[msgspec.Struct] | None, bool]] = {
    "/v1/sessions": (SessionRequest, SessionResponse, False),
    "GET /v1/sessions/{id}": (None, SessionResponse, False),
    "DELETE /v1/sessions/{id}": (None, SessionDeleted, False),
    "/v1/sessions/{id}/fork": (SessionForkRequest, SessionResponse, False),
    "/v1/sessions/{id}/extend": (SessionExtendRequest, SessionResponse, False),
    "/v1/sessions/{id}/prune": (SessionPruneRequest, SessionResponse, False),
    "/v1/sessions/{id}/generate": (SessionGenerateRequest, CompletionResponse, True),
}
