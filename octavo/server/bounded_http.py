"""uvicorn's HTTP, with limits on what a client may send before a route sees it, with a key or without.

    GET /v1/models?... HTTP/1.1     the target      MAX_TARGET_SIZE bytes              414
    Host: ...                       the head        --h11-max-incomplete-event-size    431
    X-Any: ...                      its lines       --h11-max-header-count             431
    { ... }                         the body        --max-body-bytes, by the routes    413
    X-After: ...                    the trailers    as the head; they are dropped
    GET ...                         the next ones   MAX_PIPELINED before an answer     the connection ends

The parser only reports whole lines, so bytes that it still holds are counted too. connections.py limits time and the
number of connections.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal, NoReturn

import httptools
import msgspec
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from octavo.server.api_errors import JSON, ApiError
from octavo.server.connections import Connections

#: RFC 9110 asks for 8000 at least
MAX_TARGET_SIZE = 8192
#: requests that a client may send before the first is answered
MAX_PIPELINED = 64
#: seconds that a refused client has to read the refusal; what it still sends is dropped
_LINGER_S = 2.0


class BoundedHttp(HttpToolsProtocol):
    """One connection. phase: what its client sends next."""

    def __init__(self, connections: Connections, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._waits = connections
        self._limits = connections.config
        self._phase: Literal["next", "head", "body"] = "next"
        self._size = 0  # of whole lines of the head, or of the trailers
        self._num_lines = 0
        self._num_fed = 0  # bytes since the parser last reported something
        self._is_new = False  # whether the bytes now parsed begin with a new request
        self._has_progress = False  # whether they are more than part of a head or of trailers
        self._refusal: ApiError | None = None
        self._answering: RequestResponseCycle | None = None  # the last one in the pipeline is `cycle`

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waits.waits(self, self._limits.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        self._waits.lost(self)
        self._leave()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._waits.stalls(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._waits.flows(self)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refusal is not None:
            return
        self._has_progress, self._is_new = False, self._phase == "next"
        try:
            self.parser.feed_data(data)
            self._count_unfinished(len(data))
        except httptools.HttpParserUpgrade:
            pass  # there is no other protocol, so the request is answered as it is
        except httptools.HttpParserError:
            self._refuse_now(self._refusal or ApiError(400, "this is no HTTP request: the server speaks HTTP/1.1"))

    def _count_unfinished(self, num_bytes: int) -> None:
        """The parser keeps bytes that are neither a whole line nor body."""
        if self._has_progress or self._phase == "next":
            return
        self._num_fed += num_bytes
        if self._num_fed > self._limits.h11_max_incomplete_event_size:
            self._refuse_now(self._too_large())

    # What the parser finds

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._enter("head")
        self._has_progress = not self._is_new
        if not self._is_answering():
            self._waits.waits(self, self._limits.timeout_request_head)

    def on_url(self, url: bytes) -> None:
        if len(self.url) + len(url) > MAX_TARGET_SIZE:
            self._refuse(
                ApiError(414, f"the request's target has more than {MAX_TARGET_SIZE} bytes, allowed are these")
            )
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value) + len(": \r\n")
        self._num_lines += 1
        if self._size > self._limits.h11_max_incomplete_event_size:
            self._refuse(self._too_large())
        if self._num_lines > (allowed := self._limits.h11_max_header_count):
            message = (
                f"the request has more than {allowed} headers, allowed are these: send fewer, or start the server "
                "with a larger --h11-max-header-count"
            )
            self._refuse(ApiError(431, message))
        if self._phase == "head":  # a trailer comes after the headers were checked
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(ApiError(400, f"more than {MAX_PIPELINED} requests were sent before an answer was read"))
        super().on_headers_complete()  # it may refuse the target
        self._enter("body")
        self._waits.waits(self, self._limits.timeout_request_body)

    def on_body(self, body: bytes) -> None:
        self._has_progress = True
        self._num_fed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._enter("next")
        self._is_new = False
        if self._is_answering():
            self._waits.works(self)
        else:
            self._waits.waits(self, self._limits.timeout_keep_alive)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._phase == "next" and not self._is_answering():
            self._waits.waits(self, self._limits.timeout_keep_alive)
        elif self._phase == "head":
            self._waits.waits(self, self._limits.timeout_request_head)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _enter(self, phase: Literal["next", "head", "body"]) -> None:
        self._phase = phase
        self._size = self._num_lines = self._num_fed = 0
        self._has_progress = True

    def _is_answering(self) -> bool:
        """Whether this request or an earlier one is not fully answered yet."""
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    # The end

    def expire(self) -> None:
        if self._refusal is not None or self._phase == "next":
            self.end()
            return
        seconds = getattr(self._limits, f"timeout_request_{self._phase}")
        self._refuse_now(
            ApiError(408, f"the request's {self._phase} did not arrive within {seconds:g} s, the time allowed")
        )

    def end(self) -> None:
        if self.transport.get_write_buffer_size() or not self.transport.can_write_eof():
            self.transport.abort()  # closing would wait until the client reads, or closes TLS
        else:
            self.transport.close()

    def shutdown(self) -> None:
        """The server ends."""
        if self._is_answering():
            super().shutdown()
        else:
            self.end()

    def _too_large(self) -> ApiError:
        allowed = self._limits.h11_max_incomplete_event_size
        return ApiError(
            431,
            f"the request's headers, or its trailers, have more than {allowed} bytes, allowed are these: send less, or "
            "start the server with a larger --h11-max-incomplete-event-size",
        )

    def _refuse(self, refusal: ApiError) -> NoReturn:
        """Called from inside the parser, which this ends."""
        self._refusal = refusal
        raise refusal

    def _refuse_now(self, refusal: ApiError) -> None:
        """Send the refusal, unless an answer is being sent, and end the connection once its client could read it."""
        self._refusal = refusal
        is_answering = self._is_answering()
        is_of_this = self._phase == "body" and not self.pipeline and not self.cycle.response_started
        self._leave()
        if (is_answering and not is_of_this) or self.transport.is_closing():
            self.end()
            return
        self.transport.write(self._written(refusal))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # as with TLS
            self.transport.close()
        self._waits.waits(self, _LINGER_S)

    def _leave(self) -> None:
        """Tell the running route that its client is gone, even if a further request has arrived since."""
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def _written(self, refusal: ApiError) -> bytes:
        body = msgspec.json.encode(refusal.openai_body())
        headers = [
            *self.server_state.default_headers,
            (b"content-type", JSON.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        return STATUS_LINE[refusal.status] + lines + b"\r\n" + body
