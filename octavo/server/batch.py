"""A batch: many calls from a file, answered by the server's own routes without a server.

line ──▶ POST to the application ──▶ result          max_inflight of them at a time

A call gets the same answer as over HTTP, refusals included. A line that is not a valid call gets an error as its
result. Only a dead engine stops a batch; the next run answers the remaining lines.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Scope

from octavo.errors import EngineDeadError
from octavo.server.batch_files import BatchInput, ErrorPart, LineResult, Place, ResponsePart, Results, custom_id_of
from octavo.server.serving import REQUEST_ID_HEADER
from octavo.shown import shown

URLS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses"),
    *("/v1/embeddings", "/v1/score", "/score", "/v1/rerank", "/v2/rerank", "/rerank", "/classify", "/pooling"),
)


class BatchLine(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One line of the input."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Streamed(msgspec.Struct):
    stream: Any = None


class _Usage(msgspec.Struct):
    """completion_tokens, output_tokens of a response: None where nothing is generated, and texts are read alone."""

    completion_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens: int = 0


class _Counted(msgspec.Struct):
    usage: _Usage | None = None


async def run_batch(
    app: ASGIApp, asked: BatchInput, results: Results, max_inflight: int, note: Callable[[int], None]
) -> None:
    """Answer every line that has no result yet. note: called after each with the number of its tokens. Raises
    EngineDeadError; earlier results are kept."""
    missing = [place for key, place in asked.places.items() if key not in results.done]
    places = iter(missing)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(max_inflight, len(missing))):
                group.create_task(_answer_in_turn(app, asked, places, results, note))
    except ExceptionGroup as faults:
        raise faults.exceptions[0] from None


async def _answer_in_turn(
    app: ASGIApp,
    asked: BatchInput,
    places: Iterator[Place],
    results: Results,
    note: Callable[[int], None],
) -> None:
    """Take lines until none is left. The tasks share the iterator, so none takes a line twice."""
    for place in places:
        result = await answer(app, asked.read(place), place.number)
        results.append(result)
        note(num_tokens(result))


async def answer(app: ASGIApp, line: bytes, number: int) -> LineResult:
    call_id = uuid.uuid4().hex
    result = LineResult(id=f"batch_req_{call_id}", custom_id=custom_id_of(line), response=None, error=None)
    try:
        call = parse_line(line)
    except ValueError as refusal:
        result.error = ErrorPart(code="invalid_line", message=f"line {number}: {refusal}", line=number)
        return result
    reply = await _post(app, call, call_id)
    result.response = ResponsePart(
        status_code=reply.status,
        request_id=reply.headers.get(REQUEST_ID_HEADER, call_id),
        body=msgspec.Raw(reply.body),
    )
    return result


def parse_line(line: bytes) -> BatchLine:
    """Raises ValueError for a line that is no call of a batch."""
    try:
        call = msgspec.json.decode(line, type=BatchLine)
        is_streamed = msgspec.json.decode(call.body, type=_Streamed).stream
    except msgspec.ValidationError as error:
        raise ValueError(
            f'{error}, allowed is {{"custom_id": "...", "method": "POST", "url": "{URLS[0]}", "body": {{...}}}}'
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if not call.custom_id:
        raise ValueError("custom_id is '', allowed is a text of one character or more")
    if call.method != "POST":
        raise ValueError(f"method is {shown(call.method)}, allowed is 'POST'")
    if call.url not in URLS:
        raise ValueError(f"url is {shown(call.url)}, allowed are {', '.join(URLS)}")
    if is_streamed:
        raise ValueError(f"stream is {shown(is_streamed)}, allowed in a batch is false: leave it out")
    return call


async def _post(app: ASGIApp, call: BatchLine, call_id: str) -> AppReply:
    """The answer, retried while the queue is full."""
    while True:
        reply = await post_json(app, call.url, bytes(call.body), {REQUEST_ID_HEADER: call_id})
        if reply.status != 503:
            return reply
        retry_after = reply.headers.get("retry-after")
        if retry_after is None:
            message: str = msgspec.json.decode(reply.body)["error"]["message"]
            raise EngineDeadError(message.partition("; try again when ")[0])  # there is no server to ask for its health
        await asyncio.sleep(float(retry_after))


def num_tokens(result: LineResult) -> int:
    """The number of tokens that the call generated, or read if it generates none, from its answer."""
    if result.response is None or result.response.status_code != 200:
        return 0
    usage = msgspec.json.decode(result.response.body, type=_Counted).usage
    if usage is None:
        return 0
    counts = (usage.completion_tokens, usage.output_tokens, usage.prompt_tokens)
    return next(count for count in counts if count is not None)


@dataclass(frozen=True, slots=True)
class AppReply:
    """headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def post_json(app: ASGIApp, path: str, body: bytes, headers: Mapping[str, str]) -> AppReply:
    """POST a JSON body to the application, without a socket. Cancelling this acts like a client that disconnects."""
    is_sent = False
    start: Message = {}
    pieces: list[bytes] = []

    async def receive() -> Message:
        nonlocal is_sent
        if is_sent:
            await asyncio.Event().wait()  # never disconnect
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
    headers_sent = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
    return AppReply(start["status"], headers_sent, b"".join(pieces))


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
