"""The client against a scripted server."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from octavo.bench.answer import Answer, stream
from octavo.bench.datasets import BenchRequest
from octavo.bench.http_client import Client, Target
from octavo.bench.online import Form, Server
from octavo.errors import ConfigError
from tests.bench.fake_server import FakeServer


def ask_in_turn(
    fake: FakeServer, num_requests: int, pause: Callable[[], Any] | None = None, timeout_s: float = 60.0
) -> list[Answer]:
    target = Target(fake.url, {"X-Mine": "yes"}, timeout_s)
    form = Form("openai", "/v1/completions", "m", ignore_eos=True)
    request = target.request("POST", form.endpoint, form.body(BenchRequest((1, 2, 3), 4)))

    async def run() -> list[Answer]:
        client = Client(target)
        answers = [Answer(index) for index in range(num_requests)]
        for answer in answers:
            await stream(client, request, answer, 3, keep_text=True)
            if pause is not None:
                pause()
        client.close()
        return answers

    return asyncio.run(run())


def test_a_connection_is_used_again() -> None:
    with FakeServer() as fake:
        answers = ask_in_turn(fake, 3)
        assert fake.num_connections == 1
    assert [answer.text for answer in answers] == ["t0 t1 t2 t3 "] * 3
    path, headers, body = fake.seen[0]
    assert path == "/v1/completions"
    assert headers["x-mine"] == "yes"
    assert body == {
        "model": "m",
        "prompt": [1, 2, 3],
        "max_tokens": 4,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_connection_that_the_server_closed_is_replaced() -> None:
    with FakeServer(keeps_alive=False) as fake:
        answers = ask_in_turn(fake, 3)
        assert fake.num_connections == 3
    assert not any(answer.error for answer in answers)


def test_a_body_may_end_with_the_connection() -> None:
    with FakeServer(is_chunked=False) as fake:
        (answer,) = ask_in_turn(fake, 1)
    assert answer.num_output_tokens == 4
    assert not answer.error


def test_times_are_the_servers() -> None:
    with FakeServer(first_s=0.1, gap_s=0.05) as fake:
        (answer,) = ask_in_turn(fake, 1)
    assert 0.1 <= answer.ttft < 1.0
    assert all(0.04 <= gap < 1.0 for gap in answer.gaps)
    assert answer.e2el == pytest.approx(answer.ttft + sum(answer.gaps), abs=1e-9)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [("refuse", "HTTP 429: "), ("cut", "Connection"), ("error", "the engine died")],
)
def test_faults_are_kept_with_the_answer(fault: str, problem: str) -> None:
    with FakeServer(fault=fault, fault_every=2) as fake:
        answers = ask_in_turn(fake, 2)
    assert problem in answers[0].error
    assert not answers[1].error


def test_a_request_that_hangs_is_cut_off_and_harms_no_other() -> None:
    with FakeServer(fault="hang", fault_every=2) as fake:
        begin = time.monotonic()
        answers = ask_in_turn(fake, 3, timeout_s=0.3)
        assert time.monotonic() - begin < 10
        assert fake.num_connections == 2, "the first one, which was cut off, is not used again"
    assert [bool(answer.error) for answer in answers] == [True, False, True]
    assert answers[0].error == "TimeoutError: no complete answer within 0.3 s, see --request-timeout"


def test_a_slow_answer_is_not_cut_off_before_its_time() -> None:
    with FakeServer(gap_s=0.1) as fake:
        assert not ask_in_turn(fake, 1, timeout_s=30.0)[0].error
        assert not ask_in_turn(fake, 1, timeout_s=math.inf)[0].error


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_a_timeout_that_cannot_be_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"--request-timeout is .*, allowed are seconds above 0, and inf for none"):
        Target("http://x", {}, seconds)


def test_a_server_that_is_not_there_is_a_failed_answer() -> None:
    with FakeServer() as fake:
        pass
    (answer,) = ask_in_turn(fake, 1)
    assert "Connect" in answer.error


def test_something_else_than_http_is_a_failed_answer() -> None:
    async def run() -> Answer:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example.org ESMTP\r\n")

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        target = Target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", {})
        answer = Answer(0)
        await stream(Client(target), target.request("POST", "/", b"{}"), answer, 0)
        server.close()
        return answer

    assert "does not speak HTTP" in asyncio.run(run()).error


def test_a_url_has_its_parts() -> None:
    target = Target("https://user@example.org/prefix/", {"A": "b"})
    assert target.address == ("example.org", 443)
    assert target.is_tls
    assert Target("http://[::1]:81", {}).address == ("::1", 81)
    head = target.request("POST", "/v1/completions", b"{}").decode().split("\r\n")
    assert head[:2] == ["POST /prefix/v1/completions HTTP/1.1", "Host: example.org"]
    assert head[-1] == "{}"
    assert "Content-Length: 2" in head
    assert "A: b" in head


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:port", "http://x:99999"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed is http://HOST"):
        Target(url, {})


@pytest.mark.parametrize(("name", "value"), [("A", "b\r\nC: d"), ("A:", "b"), ("", "b"), ("A B", "c")])
def test_a_header_cannot_break_out(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="cannot be sent"):
        Target("http://x", {name: value})


def test_a_server_may_start_late() -> None:
    with FakeServer(fault="refuse", fault_every=1000) as fake:  # the first request is refused, the second is not
        server = Server(Target(fake.url, {}), Form("openai", "/v1/completions", "m", ignore_eos=True))
        server.wait_until_ready(BenchRequest((1, 2, 3), 4), timeout_s=20)
        server.warm_up(BenchRequest((1, 2, 3), 4), 2)
    assert fake.prompts() == [[3, 2, 1]] * 4
