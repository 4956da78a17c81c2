"""The routes of sessions: one prompt, continued over several calls in branches that are forked, extended and pruned.

A session is kept by the front end that began it, and a connection may reach any of a server's front ends; so these
routes need a server with one. A restart of the front end loses its sessions, one of the engine only cached blocks.
"""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from octavo.outputs import RequestOutput
from octavo.server.answer_bodies import CompletionResponse
from octavo.server.api_errors import ApiError, bad_field
from octavo.server.chunks import CompletionChunks, stream_answer
from octavo.server.completions import completion_choice, completion_params, completion_response
from octavo.server.json_pieces import answer
from octavo.server.openai_calls import Call, check_pairs, make_call
from octavo.server.prompts import encode_texts, room_for_output
from octavo.server.serving import Endpoint, Serving, json_response
from octavo.server.session_calls import SessionCall, check_count
from octavo.server.session_protocol import (
    SessionBranch,
    SessionDeleted,
    SessionExtendRequest,
    SessionForkRequest,
    SessionGenerateRequest,
    SessionPruneRequest,
    SessionRequest,
    SessionResponse,
)
from octavo.server.session_store import StoredSession
from octavo.server.whole_answer import whole_answer

#: fields of completions that a session's generate refuses -> the values that ask for nothing, and the reason
_NOT_HERE: dict[str, tuple[tuple[object, ...], str]] = {
    "n": ((None, 1), "a branch has one continuation: fork it for several"),
    "echo": ((None, False), "GET the session to read its branches"),
    "cache_salt": ((None,), "it is the session's own: set it where the session begins"),
    "add_special_tokens": ((None,), "branches have their tokens already: leave it out"),
    "truncate_prompt_tokens": ((None,), "a branch is continued whole: begin a session with the tokens to keep"),
    "truncation_side": ((None,), "a branch is continued whole: leave it out"),
}


async def create_session(request: Request, serving: Serving) -> Response:
    """Begin a session: branch 0 has the prompt's tokens."""
    asked = await serving.read(request, SessionRequest)
    _check_front_ends(serving)
    if asked.cache_salt == "":
        raise bad_field("cache_salt", "is '', allowed are strings of at least one character")
    token_ids = await _token_ids(request, serving, asked.prompt, "prompt")
    info = serving.client.model_info
    room_for_output(len(token_ids), None, info, ("prompt", "max_tokens"))
    return await _told(serving, serving.sessions.add(token_ids, info, asked.model or "", asked.cache_salt))


async def get_session(request: Request, serving: Serving) -> Response:
    """A session's branches, with their tokens and texts."""
    return await _told(serving, _session(request, serving), has_tokens=True)


async def delete_session(request: Request, serving: Serving) -> Response:
    """End a session. Calls of it that generate get their answers."""
    session = _session(request, serving)
    serving.sessions.remove(session.id)
    return json_response(SessionDeleted(id=session.id))


async def fork_session(request: Request, serving: Serving) -> Response:
    """Copy a branch: n branches have its tokens, itself first. Copies of one that runs go on in the same call."""
    asked = await serving.read_body(request, SessionForkRequest)
    session, branch = _session(request, serving), asked.branch or 0
    call = session.calls.get(branch)
    forked = session.branches.fork(asked.n, branch) if call is None else await call.fork(asked.n, branch)
    return await _told(serving, session, forked=forked)


async def extend_session(request: Request, serving: Serving) -> Response:
    """Append a text or token ids to a branch, or to every branch."""
    asked = await serving.read_body(request, SessionExtendRequest)
    if (asked.text is None) == (asked.token_ids is None):
        raise bad_field("text", "and token_ids are both given or both missing, allowed is one of them")
    session = _session(request, serving)
    if asked.text is None:
        added = await _token_ids(request, serving, asked.token_ids or [], "token_ids")
    else:
        added = await _token_ids(request, serving, asked.text, "text", adds_special=False)
    session.branches.extend(added, asked.branch)
    return await _told(serving, session)


async def prune_session(request: Request, serving: Serving) -> Response:
    """Drop a branch; its number is not used again. One that runs ends."""
    asked = await serving.read_body(request, SessionPruneRequest)
    session = _session(request, serving)
    call = session.calls.get(asked.branch)
    if call is None:
        session.branches.prune(asked.branch)
    else:
        await call.prune(asked.branch)
    return await _told(serving, session)


async def generate_in_session(request: Request, serving: Serving) -> Response:
    """Continue every branch, or those named, in one batch. A choice's index is its branch, which gets its tokens."""
    asked = await serving.read(request, SessionGenerateRequest)
    for name, (allowed, why) in _NOT_HERE.items():
        if (value := getattr(asked, name)) not in allowed:
            raise bad_field(name, f"is {value!r}, allowed is to leave it out: {why}", "unsupported_parameter")
    check_pairs(asked)
    session = _session(request, serving)
    taken = session.branches.take(asked.branches)
    session.branches.give_back(taken, {})  # until the call begins
    check_count(len(taken), serving)
    call = _call(request, serving, asked, session, [list(tokens) for tokens in taken.values()])
    running = SessionCall(serving, session, call, taken)
    if asked.stream:
        return stream_answer(serving, call, CompletionChunks(call, None), running.stream(), running.branches)
    make = partial(_response, call, running, asked)
    return await whole_answer(request, serving, call, make, run=running.whole)


ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/v1/sessions", create_session),
    ("GET", "/v1/sessions/{id}", get_session),
    ("DELETE", "/v1/sessions/{id}", delete_session),
    ("POST", "/v1/sessions/{id}/fork", fork_session),
    ("POST", "/v1/sessions/{id}/extend", extend_session),
    ("POST", "/v1/sessions/{id}/prune", prune_session),
    ("POST", "/v1/sessions/{id}/generate", generate_in_session),
)


def _check_front_ends(serving: Serving) -> None:
    if (num := serving.client.num_front_ends) > 1:
        raise ApiError(
            400,
            f"this server has {num} front ends, and a session is known to one of them, which a later call may not "
            "reach: start the server with --api-server-count 1",
            code="sessions_need_one_front_end",
        )


def _session(request: Request, serving: Serving) -> StoredSession:
    _check_front_ends(serving)
    return serving.sessions.get(request.path_params["id"])


async def _token_ids(
    request: Request, serving: Serving, given: str | list[int], name: str, adds_special: bool = True
) -> list[int]:
    """Those of a text, or the given ones, checked."""
    info = serving.client.model_info
    if isinstance(given, str):
        (given,) = await encode_texts(request, serving, [given], adds_special, name, info)
    if not given:
        raise bad_field(name, "is empty, allowed is at least one token")
    for token_id in (min(given), max(given)):
        if not 0 <= token_id < info.vocab_size:
            raise bad_field(name, f"holds token id {token_id}, allowed are 0 to {info.vocab_size - 1}")
    return given


def _call(
    request: Request,
    serving: Serving,
    asked: SessionGenerateRequest,
    session: StoredSession,
    prompts: list[list[int]],
) -> Call:
    asked.cache_salt = session.cache_salt
    params = completion_params(asked, prompts, serving)
    num_top = -1 if asked.logprob_token_ids else asked.logprobs
    return make_call(request, asked, serving, "cmpl", prompts, params, num_top, names_limit=True)


def _response(
    call: Call, running: SessionCall, asked: SessionGenerateRequest, outputs: list[RequestOutput]
) -> CompletionResponse:
    choices = [
        completion_choice(call, asked, running.branches[output.request_id], output, output.outputs[0], None)
        for output in outputs
    ]
    return completion_response(call, choices, outputs)


async def _told(
    serving: Serving, session: StoredSession, *, has_tokens: bool = False, forked: list[int] | None = None
) -> Response:
    """The session and its branches."""
    branches, tokenizer = session.branches.tokens(), serving.client.get_tokenizer()

    def branch(number: int, tokens: tuple[int, ...]) -> SessionBranch:
        told = SessionBranch(branch=number, num_tokens=len(tokens))
        if has_tokens:
            told.token_ids = list(tokens)
            told.text = None if tokenizer is None else tokenizer.decode(told.token_ids)
        return told

    def make() -> SessionResponse:
        return SessionResponse(
            id=session.id,
            created=session.created,
            model=session.model,
            branches=[branch(number, tokens) for number, tokens in branches.items()],
            forked=forked,
        )

    size = session.branches.num_tokens if has_tokens else len(branches)
    return await answer(serving.lanes, size, make)
