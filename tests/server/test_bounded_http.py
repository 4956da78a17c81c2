"""Limits on what clients without a key may send, hold open and leave unread, over raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop

from octavo.errors import ConfigError
from octavo.server.bounded_http import MAX_PIPELINED, MAX_TARGET_SIZE, BoundedHttp
from octavo.server.connections import Connections
from octavo.server_config import ServerConfig
from tests.server.live import API, live, until

SIZE, COUNT = 4096, 20
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER_SIZE = 20_000_000


class Served:
    """The app echoes the body; /large answers more than sockets buffer; /wait never answers."""

    def __init__(self, listener: socket.socket, limits: ServerConfig, certificate: Path | None = None) -> None:
        self.address = listener.getsockname()
        self.connections = Connections(limits, limits.max_idle_connections)
        self.gone: list[str] = []
        config = uvicorn.Config(
            self.app,
            interface="asgi3",
            http=partial(BoundedHttp, self.connections),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            timeout_keep_alive=limits.timeout_keep_alive,
            timeout_graceful_shutdown=5,
            log_config=None,
            ssl_certfile=certificate,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.work, args=(listener,), daemon=True)
        self.thread.start()

    def work(self, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self.run(listener))

    async def run(self, listener: socket.socket) -> None:
        sweeping = asyncio.ensure_future(self.connections.sweep())
        await self.server.serve(sockets=[listener])
        sweeping.cancel()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while scope["path"] != "/unread":
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.append(scope["path"])
                return
            body += message["body"]
            if not message["more_body"] and scope["path"] != "/wait":
                break
        told = {"path": scope["path"], "body": body.decode(), "headers": [k.decode() for k, _ in scope["headers"]]}
        answer = b"x" * ANSWER_SIZE if scope["path"] == "/large" else json.dumps(told).encode()
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer, "more_body": scope["path"] == "/large"})
        if scope["path"] == "/large":
            await send({"type": "http.response.body", "body": b""})
            self.gone.append("/large")

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)


@contextlib.contextmanager
def served(certificate: Path | None = None, **limits: int) -> Iterator[Served]:
    asked = {"h11_max_incomplete_event_size": SIZE, "h11_max_header_count": COUNT, **limits}
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        one = Served(listener, ServerConfig(**asked), certificate)  # type: ignore[arg-type]
        try:
            yield one
        finally:
            one.server.should_exit = True
            one.thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as one:
        yield one


def read_all(connection: socket.socket) -> bytes:
    """Until the server ends it."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def said(server: Served, *pieces: bytes) -> tuple[int, Any]:
    """Send the pieces; return the one answer, after which the server closes the connection."""
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            try:
                connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(0.001)  # so that the pieces arrive separately
        return parsed(read_all(connection))


def parsed(answer: bytes) -> tuple[int, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def ask(connection: socket.socket, request: bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") -> Any:
    """An answer on a connection that stays open."""
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
        piece = connection.recv(65536)
        assert piece, f"the connection ended after {answer!r}"
        answer += piece
    return parsed(answer)[1]


def endless(begin: bytes, middle: bytes, num_bytes: int = 30 * SIZE) -> list[bytes]:
    return [begin, *[middle] * (num_bytes // len(middle))]


@pytest.mark.parametrize(
    ("pieces", "status", "match"),
    [
        ([b"GET /" + b"a" * MAX_TARGET_SIZE + b" HTTP/1.1\r\n\r\n"], 414, "more than 8192 bytes"),
        (endless(b"GET /", b"a" * 1000), 431, "more than 4096 bytes"),
        ([b"GET / HTTP/1.1\r\nX: " + b"a" * SIZE], 431, "more than 4096 bytes"),
        ([b"GET / HTTP/1.1\r\nX: " + b"a" * SIZE + b"\r\n\r\n"], 431, "--h11-max-incomplete-event-size"),
        (endless(b"GET / HTTP/1.1\r\n", b"a" * 1000), 431, "more than 4096 bytes"),
        (endless(b"GET / HTTP/1.1\r\nX: ", b"a" * 1000), 431, "more than 4096 bytes"),
        ([b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (COUNT + 1) + b"\r\n"], 431, "more than 20 headers"),
        (endless(b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 70), 431, "--h11-max-header-count"),
        ([CHUNKED + b"1\r\na\r\n0\r\n" + b"A: b\r\n" * (COUNT + 1) + b"\r\n"], 431, "more than 20 headers"),
        (endless(CHUNKED + b"0\r\n", b"X: " + b"a" * 1000 + b"\r\n"), 431, "or its trailers"),
        (endless(CHUNKED + b"0\r\nX: ", b"a" * 1000), 431, "or its trailers"),
        (endless(CHUNKED + b"1;x=", b"a" * 1000), 431, "more than 4096 bytes"),
        ([b"nonsense\r\n\r\n"], 400, "this is no HTTP request"),
        ([b"GET http://[::1/ HTTP/1.1\r\n\r\n"], 400, "this is no HTTP request"),
        ([b"GET /\xff HTTP/1.1\r\n\r\n"], 400, "this is no HTTP request"),
    ],
)
def test_what_is_too_much_is_refused(server: Served, pieces: list[bytes], status: int, match: str) -> None:
    got, body = said(server, *pieces)
    assert got == status
    assert match in body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"


def test_what_is_within_the_limits_is_served_however_it_is_cut(server: Served) -> None:
    head = b"POST /" + b"p" * 100 + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + b"A: " + b"b" * 3500 + b"\r\n\r\n"
    whole = head + b"5\r\nhello\r\n" * 3 + b"0\r\nAuthorization: late\r\n\r\n"
    for size in (len(whole), 700, 97):
        with server.connect() as connection:
            for start in range(0, len(whole) - 1, size):
                connection.sendall(whole[start : min(start + size, len(whole) - 1)])
                time.sleep(0.001)
            answer = ask(connection, whole[-1:])
            assert answer["body"] == "hello" * 3
            assert answer["headers"] == ["transfer-encoding", "a"], "trailers are no headers"
            assert ask(connection)["path"] == "/", "the connection goes on"


def test_a_large_body_is_no_large_head(server: Served) -> None:
    body = b"a" * (10 * SIZE)
    with server.connect() as connection:
        request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        assert len(ask(connection, request)["body"]) == len(body)


def test_many_requests_before_an_answer_end_the_connection(server: Served) -> None:
    one = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(one * (MAX_PIPELINED // 2))
        connection.shutdown(socket.SHUT_WR)
        assert 1 <= read_all(connection).count(b"HTTP/1.1 200") <= MAX_PIPELINED // 2
    with server.connect() as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" + one * (MAX_PIPELINED + 1))
        assert read_all(connection) == b"", "an error would be taken for the first one's answer"
    until(lambda: "/wait" in server.gone)


def test_a_bad_request_does_not_write_into_an_answer_before_it(server: Served) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        begin = connection.recv(4096)
        connection.sendall(b"nonsense\r\n\r\n")
        assert b"HTTP/1.1 400" not in begin + read_all(connection)


def test_an_upgrade_that_nobody_speaks_is_answered_as_plain_http(server: Served) -> None:
    request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with server.connect() as connection:
        assert ask(connection, request)["path"] == "/"


# Time


def dribble(connection: socket.socket, begin: bytes, piece: bytes) -> tuple[float, bytes]:
    """Send a little every now and then -> the seconds until the server gave up, and its answer."""
    start = time.monotonic()
    connection.sendall(begin)
    connection.settimeout(0.1)
    answer = b""
    while time.monotonic() - start < 20:
        try:
            data = connection.recv(4096)
            if not data:
                break
            answer += data
        except TimeoutError:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(piece)
        except ConnectionResetError:
            break
    return time.monotonic() - start, answer


def test_those_who_dribble_or_do_nothing_or_do_not_read_are_ended() -> None:
    limits = {"timeout_request_head": 1, "timeout_request_body": 1, "timeout_keep_alive": 2}
    cases = {
        "head": (b"GET / HTTP/1.1\r\nX: ", b"a"),
        "line": (b"GET /", b"a"),
        "body": (b"POST /wait HTTP/1.1\r\nContent-Length: 1000\r\n\r\n", b"a"),
        "chunks": (CHUNKED, b"1\r\na\r\n"),
        "unread": (b"POST /unread HTTP/1.1\r\nContent-Length: 1000\r\n\r\n", b"a"),
        "lines": (b"\r\n", b"\r\n"),
        "idle": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b""),
        "nothing": (b"", b""),
    }
    ends: dict[str, tuple[float, bytes]] = {}
    with served(**limits) as server, contextlib.ExitStack() as stack:
        unread = stack.enter_context(server.connect())
        unread.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")

        def run(name: str) -> None:
            with server.connect() as connection:
                ends[name] = dribble(connection, *cases[name])

        threads = [threading.Thread(target=run, args=(name,)) for name in cases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: "/large" in server.gone)
        until(lambda: server.connections.num_idle == 0 and not server.server.server_state.connections)
    assert all(0.9 < seconds < 15 for seconds, _ in ends.values()), ends
    statuses = {name: int(answer.split()[1]) if answer else 0 for name, (_, answer) in ends.items()}
    assert statuses == {
        **dict.fromkeys(("head", "line", "body", "chunks"), 408),
        **dict.fromkeys(("lines", "nothing"), 0),
        **dict.fromkeys(("idle", "unread"), 200),
    }
    assert "headers" not in parsed(ends["head"][1])[1]["error"]["message"]
    assert "the request's body did not arrive within 1 s" in parsed(ends["body"][1])[1]["error"]["message"]


def test_a_connection_is_used_again_and_an_answer_may_take_longer_than_any_of_these_times() -> None:
    with served(timeout_request_head=1, timeout_request_body=1, timeout_keep_alive=3) as server:
        with server.connect() as waiting, server.connect() as connection:
            waiting.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
            for _ in range(2):
                assert ask(connection)["path"] == "/"
                time.sleep(1.2)
            assert ask(connection)["path"] == "/"
            assert server.gone == []
        until(lambda: server.gone == ["/wait"])


def test_who_was_not_heard_because_the_server_slept_gets_that_time_back() -> None:
    class Client:
        ended = 0

        def expire(self) -> None:
            self.ended += 1

        end = expire

    now = 0.0
    connections = Connections(ServerConfig(timeout_request_body=5), 10, lambda: now)
    client, stalled = Client(), Client()
    connections.waits(client, 10.0)
    connections.stalls(stalled)
    now = 100.0
    connections.look(late_s=99.0)
    assert (client.ended, stalled.ended) == (0, 0)
    now = 105.0
    connections.look()
    assert (client.ended, stalled.ended) == (0, 1)
    now = 110.0
    connections.look()
    assert (client.ended, connections.num_idle) == (1, 0)


# Number and memory


def test_a_crowd_of_idle_connections_keeps_nobody_out() -> None:
    with served(max_idle_connections=50) as server, contextlib.ExitStack() as stack:
        working = stack.enter_context(server.connect())
        working.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: server.connections.num_idle == 0 and server.server.server_state.connections)
        crowd = [stack.enter_context(server.connect()) for _ in range(200)]
        for connection in crowd[::2]:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET / HT")
        until(lambda: len(server.server.server_state.connections) == 51)
        assert server.connections.num_idle == 50
        assert server.gone == [], "who is served is not idle"
        with server.connect() as connection:
            assert ask(connection)["path"] == "/"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_with_tls_nobody_waits_for_a_farewell(tmp_path: Path) -> None:
    file = tmp_path / "both.pem"
    make = shlex.split("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=a")
    subprocess.run([*make, "-keyout", file, "-out", tmp_path / "c.pem"], check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "c.pem").read_text())
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with contextlib.ExitStack() as stack:
        with served(file, max_idle_connections=5, timeout_request_head=1) as server:
            crowd = [trusting.wrap_socket(stack.enter_context(server.connect())) for _ in range(20)]
            until(lambda: len(server.server.server_state.connections) == 5)
            crowd[-1].sendall(b"GET / HTTP/1.1\r\nX: ")
            assert parsed(read_all(crowd[-1]))[0] == 408
            begin = time.monotonic()
        assert time.monotonic() - begin < 4, "the server waited for its idle clients to leave"


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
def test_a_front_end_s_memory_stays_flat_under_all_of_it(tmp_path: Path) -> None:
    with live(tmp_path, API, max_idle_connections=256) as server, contextlib.ExitStack() as stack:
        front_end = server.children()["front end 0"]
        address = ("127.0.0.1", server.port)

        def megabytes() -> float:
            status = Path(f"/proc/{front_end}/status").read_text()
            return int(status.partition("VmRSS:")[2].split()[0]) / 1024

        def num_open() -> int:
            return len(list(Path(f"/proc/{front_end}/fd").iterdir()))

        before, open_before = megabytes(), num_open()
        for _ in range(2000):
            connection = socket.create_connection(address, timeout=20)
            stack.callback(connection.close)
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nX: " + b"a" * 2000)
        until(lambda: num_open() <= open_before + 256 + 2)
        for begin, middle in (
            (b"GET /", b"a"),
            (b"GET / HTTP/1.1\r\nX: ", b"a"),
            (CHUNKED + b"0\r\nX: ", b"a"),
            (CHUNKED + b"0\r\n", b"A: b\r\n"),
            (b"", b"GET /health HTTP/1.1\r\n\r\n"),
        ):
            with socket.create_connection(address, timeout=20) as connection, contextlib.suppress(ConnectionError):
                connection.sendall(begin)
                for _ in range(100):
                    connection.sendall(middle * (200_000 // len(middle)))
        assert server.is_healthy()
        assert megabytes() < before + 40
        assert server.children()["front end 0"] == front_end


@pytest.mark.parametrize(
    "name",
    [
        "timeout_keep_alive",
        "timeout_request_head",
        "timeout_request_body",
        "max_idle_connections",
        "h11_max_header_count",
        "h11_max_incomplete_event_size",
    ],
)
def test_limits_that_would_let_nobody_in_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0, allowed is"):
        ServerConfig(**{name: 0})  # type: ignore[arg-type]
