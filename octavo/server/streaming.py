"""Server-sent events, and noticing that nobody listens any more.

An EventStream is a bare ASGI response: every output of the engine becomes one write, with as little Python between
as there can be. Its status is decided by the engine's first output, so that a refused request gets its 400.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.outputs import RequestOutput
from octavo.server.errors import ApiError, as_api_error, error_response

#: what a log shows of a request whose client went away; nobody receives it
CLIENT_CLOSED_REQUEST = 499

_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


class Events(Protocol):
    """One stream's events, as bytes to send."""

    def output(self, output: RequestOutput) -> bytes:
        """Of what is new; b"" if there is nothing to tell yet. Raises ApiError if the engine gave up."""

    def end(self) -> bytes:
        """After the last output."""

    def error(self, error: ApiError) -> bytes:
        """In place of all that was to come."""


class EventStream(Response):
    """Outputs as events, until they end, fail, or the client has gone: then the engine stops making them."""

    def __init__(
        self, outputs: AsyncGenerator[RequestOutput], events: Events, headers: Mapping[str, str] | None = None
    ) -> None:
        self._outputs = outputs
        self._events = events
        self.status_code = 200
        self.background = None
        self.init_headers({**_HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outputs = self._outputs
        async with cancelled_on_disconnect(receive), contextlib.aclosing(outputs):
            try:
                opening = self._events.output(await anext(outputs))
            except Exception as error:
                await error_response(as_api_error(error), scope["path"])(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send(opening, send)
            try:
                async for output in outputs:
                    await self._send(self._events.output(output), send)
                last = self._events.end()
            except Exception as error:
                last = self._events.error(as_api_error(error))
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send(self, body: bytes, send: Send) -> None:
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})


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
