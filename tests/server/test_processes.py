"""Processes of a server: how each one's end affects the others, and that nothing is left when all have ended."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.cli import main as cli
from octavo.errors import ConfigError
from octavo.observe.events import Finished
from octavo.observe.flight_log import read_open_log
from octavo.processes.household import MAX_TRIES, STABLE_S, Restarts
from octavo.processes.listening import close_socket, open_socket, url_of
from octavo.server_config import ServerConfig
from tests.server.live import PATIENCE_S, LiveServer, Stream, is_running, live, live_and_clean, read_answer, until

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")

LONG = {"prompt": "Once upon a time", "params": {"temperature": 0, "max_tokens": 1500, "ignore_eos": True}}
SHORT = {"prompt": "The capital of France is", "params": {"temperature": 0, "max_tokens": 4}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_and_clean(tmp_path_factory.mktemp("tmp"), api_server_count=2) as server:
        yield server


def answer(server: LiveServer) -> str:
    return read_answer(server, **SHORT)


def front_end_of_a_connection(server: LiveServer) -> int:
    return int(server.get("/pid")[1])


def two_front_ends(server: LiveServer) -> tuple[Stream, Stream]:
    """Streams on both front ends."""
    first = Stream(server, **LONG)
    while (second := Stream(server, **LONG)).front_end == first.front_end:
        second.close()
    return first, second


def test_it_serves(server: LiveServer) -> None:
    assert server.is_healthy()
    assert answer(server).startswith(" Paris")
    assert b"octavo:generation_tokens_total" in server.get("/metrics")[1]
    memory = json.loads(server.get("/memory_map")[1])
    assert memory["num_blocks"] > 0
    assert memory["sequences"] == []
    header, events = read_open_log(io.BytesIO(server.get("/events")[1]), "events")
    assert header.started.num_blocks > 0
    assert any(type(event) is Finished for event in events)
    assert sorted(server.children()) == ["engine", "front end 0", "front end 1"]


def test_a_reader_that_hangs_up_frees_its_blocks(server: LiveServer) -> None:
    stream = Stream(server, **LONG)
    stream.start()
    stream.close()
    until(lambda: json.loads(server.get("/stats")[1])["num_used_blocks"] == 0)


def test_a_front_end_that_dies_takes_its_own_requests_only(server: LiveServer) -> None:
    doomed, other = two_front_ends(server)
    doomed.start()
    other.start()
    os.kill(doomed.front_end, signal.SIGKILL)
    until(lambda: json.loads(server.get("/stats")[1])["num_running"] == 1)
    assert other.line()["outputs"][0]["finish_reason"] is None
    other.close()
    pids = until(lambda: len(now := server.children()) == 3 and now)
    assert doomed.front_end not in pids.values()
    server.wait_for_line("front end . ended with signal 9 .SIGKILL.; starting it again")
    renewed = set(pids.values()) - {other.front_end, pids["engine"]}
    until(lambda: front_end_of_a_connection(server) in renewed)
    assert answer(server).startswith(" Paris")


def test_an_engine_that_is_killed_is_started_again(server: LiveServer) -> None:
    streams = two_front_ends(server)
    for stream in streams:
        stream.start()
    engine = server.children()["engine"]
    os.kill(engine, signal.SIGKILL)
    begin = time.monotonic()
    for stream in streams:
        last = stream.rest()[-1]
        assert "engine is down: its process ended with signal 9 (SIGKILL)" in last["error"]
        stream.close()
    assert time.monotonic() - begin < PATIENCE_S / 4, "those who wait were not told at once"
    refused = Stream(server, **SHORT)
    if "error" in (line := refused.start()):
        assert refused.status == 503
        assert "started again" in line["error"]
        assert not server.is_healthy()
    refused.close()
    until(server.is_healthy)
    until(lambda: all(Stream(server, **SHORT).start().get("outputs") for _ in range(8)))
    assert server.children()["engine"] != engine
    assert answer(server).startswith(" Paris")


def test_sigterm_ends_running_requests_and_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory() as folder, live(Path(folder)) as server:  # short: a socket's path has a limit
        children = server.children()
        stream = Stream(server, **LONG)
        stream.start()
        until(lambda: len(os.listdir(folder)) == 1, "the run directory is the only file")
        server.process.send_signal(signal.SIGTERM)
        assert stream.rest()[-1]["outputs"][0]["finish_reason"] == "abort"
        assert server.process.wait(PATIENCE_S) == 0
        assert server.leftovers(children) == []
        with pytest.raises(ConnectionRefusedError):
            Stream(server, **SHORT)


def test_draining_lets_running_requests_end_and_takes_no_new_ones(tmp_path: Path) -> None:
    with live(tmp_path, shutdown_timeout=60) as server:
        children = server.children()
        params = {**LONG["params"], "max_tokens": 80}  # type: ignore[dict-item]
        running = Stream(server, prompt="One, two,", params=params)
        late = Stream(server, **SHORT)
        running.start()
        server.process.send_signal(signal.SIGINT)
        server.wait_for_line("running requests have 60 s")
        until(lambda: not server.is_healthy())
        assert "shutting down" in late.start()["error"]
        assert late.status == 503
        lines = running.rest()
        assert lines[-1]["outputs"][0]["finish_reason"] == "length"
        running.close()
        late.close()
        assert server.process.wait(PATIENCE_S) == 0
        assert server.leftovers(children) == []


def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    with live(tmp_path, shutdown_timeout=600) as server:
        children = server.children()
        stream = Stream(server, **LONG)
        stream.start()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_line("shutting down")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        assert server.leftovers(children) == []


def test_nobody_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with live(tmp_path) as server:
        children = server.children()
        stream = Stream(server, **LONG)
        stream.start()
        server.process.kill()
        until(lambda: not any(map(is_running, children.values())))
        assert server.leftovers(children) == []


# What cannot start


def serve(*argv: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from octavo.cli.main import main; sys.exit(main())"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, "serve", *argv]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_an_engine_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    ended = serve(str(tmp_path / "nowhere"), "--port", "0")
    assert ended.returncode == 2
    assert ended.stderr.startswith("octavo: error: ")
    assert "nowhere" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_port_in_use_is_refused_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "smollm2", "--host", "127.0.0.1", "--port", str(port)]) == 2
    assert f"cannot listen on port {port} of 127.0.0.1: Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"port": 70000}, "port is 70000, allowed is 0 to 65535"),
        ({"host": "a", "uds": "b"}, "allowed is one of them"),
        ({"ssl_keyfile": "k"}, "https needs both"),
        ({"ssl_ca_certs": "k"}, "ssl_ca_certs is of no use"),
        ({"api_server_count": 0}, "api_server_count is 0"),
        ({"api_server_count": 100_000}, "api_server_count is 100000, allowed is 1 to .* each is a process"),
        ({"shutdown_timeout": -1}, "shutdown_timeout is -1"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ServerConfig(**options)


def test_a_unix_socket_left_by_a_killed_server_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    config = ServerConfig(uds=str(tmp_path / "socket"))
    open_socket(config).close()  # the file stays, as after kill -9
    opened = open_socket(config)
    assert url_of(opened, config) == f"http+unix://{tmp_path}/socket"
    opened.listen()
    with pytest.raises(ConfigError, match="Address already in use"):
        open_socket(config)
    close_socket(opened, config)
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="host is 'no such host'"):
        open_socket(ServerConfig(host="no such host"))


def test_certificates_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    for key in ("key", "missing"):
        with pytest.raises(ConfigError, match=f"ssl_keyfile {tmp_path}/{key} cannot be used"):
            open_socket(ServerConfig(ssl_keyfile=str(tmp_path / key), ssl_certfile=str(tmp_path / "key")))


def test_restarts_wait_longer_each_time_and_forget_after_a_while() -> None:
    restarts = Restarts()
    assert [restarts.next_delay(0.0) for _ in range(MAX_TRIES + 1)] == [0.5, 1.0, 2.0, 4.0, 8.0, None]
    restarts.serves(10.0)
    assert restarts.next_delay(10.0 + STABLE_S / 2) is None
    restarts.serves(100.0)
    assert restarts.next_delay(100.0 + STABLE_S) == 0.5
