"""A stopped front end is killed if it stays stopped, and keeps its streams if it continues."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.server.live import FAULTS, LiveServer, Stream, live, live_and_clean, read_answer, until

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")

LONG = {"prompt": "Once upon a time", "params": {"max_tokens": 1500, "ignore_eos": True}}
SHORT = {"prompt": "The capital of France is", "params": {"temperature": 0, "max_tokens": 4}}


def num_aborted(server: LiveServer) -> int:
    metrics = server.get("/metrics")[1].decode()
    return int(float(re.findall(r'octavo:request_success_total\{.*finished_reason="abort".*\} (\S+)', metrics)[0]))


def test_clients_of_one_that_goes_on_are_told_that_the_engine_gave_them_up(tmp_path: Path) -> None:
    with live(tmp_path, path=[FAULTS], front_end_hang_timeout=0) as server:
        streams = [Stream(server, **LONG), Stream(server, **LONG)]
        for stream in streams:
            stream.start()
        front_end = server.children()["front end 0"]
        os.kill(front_end, signal.SIGSTOP)
        try:
            server.wait_for_line(r"front end front-end-0-\d+ does not read: its requests are aborted")
        finally:
            os.kill(front_end, signal.SIGCONT)
        for stream in streams:
            assert "the process that serves it was stopped or too busy" in stream.rest()[-1]["error"]
            stream.close()
        server.wait_for_line("did not read for a while: the engine has given up 2 requests")
        assert read_answer(server, **SHORT).startswith(" Paris")
        stats = json.loads(server.get("/stats")[1])
        assert (stats["num_running"], stats["num_waiting"], stats["num_used_blocks"]) == (0, 0, 0)
        assert num_aborted(server) == 2
        assert server.children()["front end 0"] == front_end


def test_one_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    with live_and_clean(tmp_path, front_end_hang_timeout=3) as server:
        stream = Stream(server, **LONG)
        stream.start()
        before = server.children()
        os.kill(stream.front_end, signal.SIGSTOP)
        server.wait_for_line(
            rf"front end 0 hangs: nothing was heard of it for 3 s; process {stream.front_end} is killed"
        )
        server.wait_for_line("front end 0 ended with signal 9 .SIGKILL.; starting it again")
        until(lambda: int(server.get("/pid")[1]) != stream.front_end)
        until(lambda: json.loads(server.get("/stats")[1])["num_running"] == 0)
        assert server.children()["engine"] == before["engine"]
        assert read_answer(server, **SHORT).startswith(" Paris")
        stream.close()
