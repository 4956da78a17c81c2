"""How a front end serves many clients from one event loop: streams, threads for long work, clients that leave.

An EventStream is a bare ASGI response: each output of the engine becomes one write, with as little Python between as
possible. The engine's first output decides its status, so that a refused request gets its 400. Where the server keeps
streams alive, a long wait begins the answer earlier.

Long work runs in lanes, each with threads and a queue of its own, so that a small request never waits behind a large
one and all streams go on. What runs there releases the interpreter or yields often: a thread alone would not free the
event loop.

    short       up to 64 thousand characters, two at a time
    long        up to a million
    huge        more: one at a time, since it takes a hundred bytes of memory a byte, and seconds
    templates   chat templates sent with requests: foreign programs, which run up to their time limit
    answers     large answers and lists, in Python: one at a time, since such threads take turns with the event loop
    store       reading and writing kept responses, which may be on a disk
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, Literal, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from octavo.server.api_errors import ApiError, as_api_error, error_response

#: the status that a log shows for a request whose client left; no client receives it
CLIENT_CLOSED_REQUEST = 499
#: a comment, which readers of events skip
KEEP_ALIVE = b": waiting for the next token\n\n"
_MAX_WRITE = 2**18  # bytes of an event sent at a time
_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}

T = TypeVar("T")
O = TypeVar("O")
In = TypeVar("In", contravariant=True)
Lane = Literal["short", "long", "huge", "templates", "answers", "store"]
_NUM_THREADS: dict[Lane, int] = {"short": 2, "long": 2, "huge": 1, "templates": 1, "answers": 1, "store": 1}


class Lanes:
    """A front end's threads for its requests. All calls come from the event loop's thread."""

    def __init__(self) -> None:
        self._executors: dict[Lane, ThreadPoolExecutor] = {}

    async def run(self, lane: Lane, work: Callable[[], T]) -> T:
        """If the caller is cancelled before the work has begun, it never begins."""
        if lane not in self._executors:
            self._executors[lane] = ThreadPoolExecutor(_NUM_THREADS[lane], thread_name_prefix=f"octavo-{lane}")
        return await asyncio.get_running_loop().run_in_executor(self._executors[lane], work)


def lane_for(size: int) -> Lane:
    """size: characters, or things that take as long each."""
    if size <= 64 * 1024:
        return "short"
    return "long" if size <= 2**20 else "huge"


class Events(Protocol[In]):
    """One stream's events, as bytes to send."""

    def output(self, output: In) -> bytes:
        """The events of one output; b"" for none yet. Raises ApiError if the engine failed at the request."""

    def is_large(self, output: In) -> bool:
        """Whether encoding this output takes more than a few milliseconds."""
        return False

    def end(self) -> bytes:
        """The events after the last output."""
        return b""

    def error(self, error: ApiError) -> bytes:
        """The events that end a failed stream."""


class EventStream(Response, Generic[O]):
    """Outputs as events until they end, fail or the client leaves, which ends the engine's work too."""

    def __init__(
        self,
        outputs: AsyncGenerator[O],
        events: Events[O],
        headers: Mapping[str, str],
        keep_alive_s: float,
        lanes: Lanes,
    ) -> None:
        """keep_alive_s: seconds without an event after which a comment is sent; 0: never. lanes: encode large
        outputs."""
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
        """Send comments inside, so that proxies keep the stream open, also while its request is queued."""
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
    """Leave the block at once and quietly if the client leaves. The request's body must have been read before."""
    task = asyncio.current_task()
    assert task is not None, "requests are served by tasks"
    is_inside = True
    has_cancelled = False

    async def watch() -> None:
        nonlocal has_cancelled
        while (await receive())["type"] != "http.disconnect":
            pass
        if is_inside:  # a response that was sent reads as a disconnect too
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


@contextlib.asynccontextmanager
async def closing(outputs: AsyncIterator[object]) -> AsyncIterator[None]:
    """Leaving the block ends the stream now, not when it is garbage-collected."""
    try:
        yield
    finally:
        close = getattr(outputs, "aclose", None)
        if close is not None:
            await close()
