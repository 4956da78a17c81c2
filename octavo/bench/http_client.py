"""An HTTP client with little overhead: thousands of streams in one process, a few microseconds per chunk.

A Connection is one socket with a C parser (httptools). It carries one request at a time and is kept for the next. Bytes
go from the event loop straight to the reader of the body: no task switch, no queue, no copy. A task wakes up once per
request, at its end.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

from octavo.errors import ConfigError

OnBody = Callable[[bytes, float], None]
#: as in vLLM: the last of many simultaneous requests may wait for hours
DEFAULT_TIMEOUT_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Target:
    """The server's URL, the headers of every request, and the timeout of a whole answer."""

    base_url: str
    headers: Mapping[str, str]
    timeout_s: float = DEFAULT_TIMEOUT_S

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ConfigError(f"--request-timeout is {self.timeout_s:g}, allowed are seconds above 0, and inf for none")
        try:
            parts = urlsplit(self.base_url)
            is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number
            is_good = False
        if not is_good:
            raise ConfigError(
                f"--base-url is {self.base_url!r}, allowed is http://HOST[:PORT][/PREFIX] or https://...; "
                "give it with its scheme"
            )
        for name, value in self.headers.items():
            if not name or any(ord(c) < 33 or c == ":" for c in name) or any(c in "\r\n\0" for c in value):
                raise ConfigError(f"--header {name}={value!r} cannot be sent: a header is one line of NAME=VALUE")

    @property
    def is_tls(self) -> bool:
        return self.base_url.startswith("https:")

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.base_url)
        assert parts.hostname is not None, "checked in __post_init__"
        return parts.hostname, parts.port or (443 if self.is_tls else 80)

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The bytes of one request."""
        parts = urlsplit(self.base_url)
        head = [
            f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Accept: */*",
            f"Content-Length: {len(body)}",
        ]
        if body:
            head.append("Content-Type: application/json")
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*head, "", ""]).encode("utf-8") + body


class Client:
    """A pool of connections to one target, for one event loop."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._idle: list[Connection] = []
        self._tls = ssl.create_default_context() if target.is_tls else None
        self._addresses: list[str] = []

    async def send(self, request: bytes, on_body: OnBody) -> int:
        """Send one request, pass its body to `on_body`, return the status. Raises OSError, and TimeoutError after the
        target's timeout."""
        allowed = self.target.timeout_s
        try:
            async with asyncio.timeout(allowed if math.isfinite(allowed) else None) as limit:
                return await self._send(request, on_body)
        except TimeoutError:
            if limit.expired():
                raise TimeoutError(f"no complete answer within {allowed:g} s, see --request-timeout") from None
            raise  # raised by the network

    async def _send(self, request: bytes, on_body: OnBody) -> int:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                try:
                    return await self._exchange(connection, request, on_body)
                except ConnectionError:
                    # The server closed the idle connection just now: try again. After the first byte it is an error.
                    if connection.has_answered:
                        raise
        return await self._exchange(await self._connect(), request, on_body)

    async def resolve(self) -> None:
        """Look up the host name once, before the timing begins."""
        host, port = self.target.address
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._addresses = [str(one[4][0]) for one in found]

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    async def _connect(self) -> Connection:
        """Connect to the first address that answers; drop those that do not, such as ::1 for localhost."""
        if not self._addresses:
            await self.resolve()
        for address in self._addresses[:-1]:
            try:
                return await self._open(address)
            except OSError:
                self._addresses = [one for one in self._addresses if one != address]
        return await self._open(self._addresses[-1])

    async def _open(self, address: str) -> Connection:
        host, port = self.target.address
        name = host if self._tls else None
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(Connection, address, port, ssl=self._tls, server_hostname=name)
        return made

    async def _exchange(self, connection: Connection, request: bytes, on_body: OnBody) -> int:
        try:
            status = await connection.exchange(request, on_body)
        except BaseException:
            connection.close()
            raise
        if connection.is_open:
            self._idle.append(connection)
        return status


class Connection(asyncio.Protocol):
    """One socket, one request at a time. The parser calls on_headers_complete, on_body and on_message_complete."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._on_body: OnBody | None = None
        self._done: asyncio.Future[int] | None = None
        self._now = 0.0
        self._ends_with_connection = False
        self.has_answered = False

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def exchange(self, request: bytes, on_body: OnBody) -> int:
        assert self._done is None, "one request at a time"
        assert self._transport is not None, "used only after connection_made"
        self._parser = httptools.HttpResponseParser(self)
        self._on_body = on_body
        self._ends_with_connection = self.has_answered = False
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._done
        finally:
            self._done = self._on_body = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write"), "a stream's transport"
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        self.has_answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the server does not speak HTTP/1.1: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._ends_with_connection and exc is None:
            self.on_message_complete()
        else:
            self._fail(exc or ConnectionResetError("the server closed the connection before the answer's end"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False

    def on_message_begin(self) -> None:
        self._ends_with_connection = True  # unless a header gives the body's length

    def on_body(self, body: bytes) -> None:
        if self._on_body is not None:
            self._on_body(body, self._now)

    def on_message_complete(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(self._parser.get_status_code())
        if self._transport is not None and not self._parser.should_keep_alive():
            self.close()

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error if isinstance(error, OSError) else ConnectionError(str(error)))
