"""Server-sent events, and noticing that nobody listens any more.

An EventStream is a bare ASGI response: every output of the engine becomes one write, with as little Python between
as there can be. Its status is decided by the engine's first output, so that a refused request gets its 400; but where
the server keeps streams alive, a long wait begins the answer before there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from functools import partial
from typing import Protocol

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from octavo.outputs import RequestOutput
from octavo.server.api_errors import ApiError, as_api_error, error_response
from octavo.server.room import Lanes

#: what a log shows of a request whose client went away; nobody receives it
CLIENT_CLOSED_REQUEST = 499
#: a comment, which readers of events skip
KEEP_ALIVE = b": waiting for the next token\n\n"

#: bytes of an event that are sent at a time
_MAX_WRITE = 2**18
_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


class Events(Protocol):
    """One stream's events, as bytes to send."""

    def output(self, output: RequestOutput) -> bytes:
        """Of what is new; b"" if there is nothing to tell yet. Raises ApiError if the engine gave up."""

    def is_large(self, output: RequestOutput) -> bool:
        """Whether to tell of it takes more than a few milliseconds."""

    def end(self) -> bytes:
        """After the last output."""

    def error(self, error: ApiError) -> bytes:
        """In place of all that was to come."""


class EventStream(Response):
    """Outputs as events, until they end, fail, or the client has gone: then the engine stops making them."""

    def __init__(
        self,
        outputs: AsyncGenerator[RequestOutput],
        events: Events,
        headers: Mapping[str, str],
        keep_alive_s: float,
        lanes: Lanes,
    ) -> None:
        """keep_alive_s: after so many seconds without an event, send a comment; 0: never. lanes: where events of much
        are made."""
        self._lanes = lanes
        self._outputs = outputs
        self._events = events
        self._keep_alive_s = keep_alive_s
        self.status_code = 200
        self.background = None
        self.init_headers({**_HEADERS, **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outputs, events = self._outputs, self._events
        body = _Body(send, {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with cancelled_on_disconnect(receive), contextlib.aclosing(outputs), body.kept_alive(self._keep_alive_s):
            try:
                async for output in outputs:
                    if events.is_large(output):
                        piece = await self._lanes.run("answers", partial(events.output, output))
                    else:
                        piece = events.output(output)
                    if piece:
                        await body.write(piece)
                last = events.end()
            except Exception as error:
                if not body.has_begun:
                    body.has_ended = True
                    await error_response(as_api_error(error), scope["path"])(scope, receive, send)
                    return
                last = events.error(as_api_error(error))
            await body.end(last)


class _Body:
    """A response that begins when there is something to write."""

    def __init__(self, send: Send, start: Message) -> None:
        self._send = send
        self._start = start
        self._is_quiet = False
        self.has_begun = False
        self.has_ended = False

    async def write(self, piece: bytes) -> None:
        self._is_quiet = False
        if not self.has_begun:
            self.has_begun = True
            await self._send(self._start)
        for start in range(0, len(piece) or 1, _MAX_WRITE):
            part = piece if len(piece) <= _MAX_WRITE else piece[start : start + _MAX_WRITE]
            await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def end(self, piece: bytes) -> None:
        if not self.has_begun:
            await self.write(b"")
        self.has_ended = True
        await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    @contextlib.asynccontextmanager
    async def kept_alive(self, interval_s: float) -> AsyncIterator[None]:
        """Inside, proxies see that the stream lives, also while its request waits for its turn."""
        if interval_s == 0:
            yield
            return
        task = asyncio.create_task(self._keep_alive(interval_s))
        try:
            yield
        finally:
            task.cancel()

    async def _keep_alive(self, interval_s: float) -> None:
        while not self.has_ended:
            self._is_quiet = True
            await asyncio.sleep(interval_s)
            if self._is_quiet and not self.has_ended:
                await self.write(KEEP_ALIVE)


@contextlib.asynccontextmanager
async def cancelled_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """What is inside ends at once, quietly, if the client goes away. The request's body must have been read."""
    task = asyncio.current_task()
    assert task is not None, "requests are served by tasks"
    is_inside = True
    has_cancelled = False

    async def watch() -> None:
        nonlocal has_cancelled
        while (await receive())["type"] != "http.disconnect":
            pass
        if is_inside:  # a response that was sent reads as a disconnect, too
            has_cancelled = True
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not has_cancelled or task.uncancel() > 0:
            raise
    finally:
        is_inside = False
        watcher.cancel()
