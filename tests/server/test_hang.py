"""An engine that hangs is noticed by its silence and restarted; one that works is left alone."""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.processes.heartbeat import OVERSLEPT_S, Watchdog
from octavo.server_config import ServerConfig
from tests.server.live import LiveServer, Stream, live_and_clean, read_answer, until

TIMEOUT_S = 2.0
LONG = {"prompt": "Once upon a time", "params": {"temperature": 0, "max_tokens": 1500, "ignore_eos": True}}
SHORT = {"prompt": "The capital of France is", "params": {"temperature": 0, "max_tokens": 16, "ignore_eos": True}}

needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The engine's first steps, which have a longer limit, are done."""
    with live_and_clean(tmp_path_factory.mktemp("tmp"), engine_hang_timeout=TIMEOUT_S) as server:
        assert answer(server).startswith(" Paris")
        yield server


def answer(server: LiveServer) -> str:
    return read_answer(server, **SHORT)


@contextmanager
def stopped(process_id: int) -> Iterator[None]:
    os.kill(process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process_id, signal.SIGCONT)


def hangs_told(server: LiveServer) -> list[str]:
    return [line for line in server.lines if "hangs" in line]


@needs_proc
def test_an_idle_engine_and_a_slow_one_are_left_alone(server: LiveServer) -> None:
    engine = server.children()["engine"]
    time.sleep(1.5 * TIMEOUT_S)
    stream = Stream(server, **LONG)
    stream.start()
    end = time.monotonic() + 1.5 * TIMEOUT_S
    while time.monotonic() < end:
        with stopped(engine):
            time.sleep(TIMEOUT_S / 4)
        stream.line()
    stream.close()
    assert hangs_told(server) == []
    assert server.children()["engine"] == engine


@needs_proc
def test_a_supervisor_that_was_stopped_itself_counts_anew(server: LiveServer) -> None:
    engine = server.children()["engine"]
    with stopped(engine), stopped(server.process.pid):
        time.sleep(1.5 * TIMEOUT_S + OVERSLEPT_S)
    assert answer(server).startswith(" Paris")
    assert hangs_told(server) == []
    assert server.children()["engine"] == engine


@needs_proc
def test_an_engine_that_hangs_is_killed_and_started_again(server: LiveServer) -> None:
    engine = server.children()["engine"]
    running = Stream(server, **LONG)
    running.start()
    os.kill(engine, signal.SIGSTOP)
    begin = time.monotonic()
    late = Stream(server, **SHORT)
    assert "it hung (nothing was heard of it for 2 s) and was killed" in late.start()["error"]
    assert "engine is down: it hung" in running.rest()[-1]["error"]
    assert time.monotonic() - begin > TIMEOUT_S / 2
    assert late.status == 503
    assert not server.is_healthy()
    server.wait_for_line(rf"engine hangs: nothing was heard of it for 2 s; process {engine} is killed.*--engine-hang-")
    server.wait_for_line("engine went down: it hung .*; starting it again in 0.5 s")
    until(server.is_healthy)
    assert answer(server).startswith(" Paris")
    assert server.children()["engine"] != engine
    running.close()
    late.close()


# The timeouts alone


def test_silence_longer_than_the_patience_is_a_hang() -> None:
    watchdog = Watchdog()
    assert not watchdog.is_over(1e9)
    assert watchdog.seconds_left(1e9) == math.inf
    watchdog.heard(10.0, 600.0)
    watchdog.heard(20.0, 5.0)  # its first steps are over
    assert watchdog.seconds_left(22.0) == 3.0
    assert not watchdog.is_over(24.9)
    assert watchdog.is_over(25.0)
    watchdog.rest()
    watchdog.heard(26.0, 5.0)
    assert not watchdog.is_over(1e9), "it is ending"


def test_who_asks_too_late_has_not_listened() -> None:
    watchdog = Watchdog()
    watchdog.heard(10.0, 5.0)
    assert not watchdog.is_over(100.0)
    assert watchdog.seconds_left(100.0) == 5.0
    assert watchdog.is_over(105.0)


@pytest.mark.parametrize("seconds", [-1.0, 0.5, math.inf, math.nan])
def test_a_timeout_that_cannot_be_is_refused(seconds: float) -> None:
    with pytest.raises(
        ConfigError, match=r"engine_hang_timeout is .*, allowed (are 1 or more seconds, and 0 for never|is a number)"
    ):
        ServerConfig(engine_hang_timeout=seconds)
