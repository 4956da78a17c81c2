"""Several engines behind one address: requests are shared, one's death is its own, and each has its label."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from octavo import LLM, SamplingParams
from tests.server.faults.sitecustomize import DEADLY
from tests.server.live import FAULTS, PATIENCE_S, LiveServer, Stream, live, read_answer, until
from tests.server.scripted_engine import ScriptedEngine, app_of, post

needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")

PROMPTS = ("The capital of France is", "Once upon a time", "Ink and paper", "Three colours:")
GREEDY = {"temperature": 0, "max_tokens": 8}
LONG = {"temperature": 0, "max_tokens": 1500, "ignore_eos": True}
LONGISH = {"temperature": 0, "max_tokens": 250, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """At its end it must let the requests of both engines finish, and leave nothing behind."""
    options: dict[str, Any] = {"path": [FAULTS], "api_server_count": 2, "shutdown_timeout": 60}
    with live(tmp_path_factory.mktemp("tmp"), engine={"data_parallel_size": 2}, **options) as server:
        yield server
        children = server.children()
        streams = [Stream(server, prompt="One, two,", params={**LONGISH, "max_tokens": 60}, rank=one) for one in (0, 1)]
        for stream in streams:
            stream.start()
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            assert stream.rest()[-1]["outputs"][0]["finish_reason"] == "length"
            stream.close()
        assert server.process.wait(PATIENCE_S) == 0
        assert server.leftovers(children) == []


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """The answers of one engine."""
    with LLM("smollm2", num_threads=1, max_model_len=2048) as llm:
        outputs = llm.generate(PROMPTS, SamplingParams(**GREEDY), use_tqdm=False)
    return {output.prompt: output.outputs[0].text for output in outputs if output.prompt is not None}


def samples(server: LiveServer, name: str) -> dict[str, float]:
    """engine -> value, summed over other labels; empty while no engine serves."""
    found: dict[str, float] = {}
    status, text = server.get("/metrics")
    for family in text_string_to_metric_families(text.decode()) if status == 200 else ():
        for sample in family.samples:
            if sample.name == name:
                engine = sample.labels["engine"]
                found[engine] = found.get(engine, 0.0) + sample.value
    return found


def running(server: LiveServer) -> dict[str, float]:
    return samples(server, "octavo:num_requests_running")


@needs_proc
def test_either_engine_answers_as_one_alone_does(server: LiveServer, expected: dict[str, str]) -> None:
    assert sorted(server.children()) == ["engine 0", "engine 1", "front end 0", "front end 1"]
    for rank in (0, 1, None):
        for prompt, text in expected.items():
            assert read_answer(server, prompt=prompt, params=GREEDY, rank=rank) == text
    tokens = samples(server, "octavo:generation_tokens_total")
    assert sorted(tokens) == ["0", "1"], "each engine has its label"
    assert min(tokens.values()) >= 32
    assert sum(tokens.values()) == 96
    assert tokens == samples(server, "vllm:generation_tokens_total")
    assert json.loads(server.get("/stats")[1])["num_blocks"] == 2 * 511


@needs_proc
def test_running_requests_are_shared_by_both_engines_and_all_front_ends(server: LiveServer) -> None:
    streams = [Stream(server, prompt=f"{place} ink", params=LONG) for place in range(6)]
    for stream in streams:
        stream.start()
        time.sleep(0.15)  # front ends learn of each other's requests
    until(lambda: sum(running(server).values()) == 6, running(server))
    assert running(server) == {"0": 3, "1": 3}
    for stream in streams:
        stream.close()
    until(lambda: sum(running(server).values()) == 0)


@needs_proc
def test_one_engine_s_death_ends_its_own_streams_only(server: LiveServer, expected: dict[str, str]) -> None:
    whole = read_answer(server, prompt=PROMPTS[1], params=LONGISH, rank=1)
    doomed = [Stream(server, prompt="Once", params=LONG, rank=0) for _ in range(2)]
    safe = [Stream(server, prompt=PROMPTS[1], params=LONGISH, rank=1) for _ in range(2)]
    begun = {stream: stream.start() for stream in [*doomed, *safe]}
    before = server.children()
    os.kill(before["engine 0"], signal.SIGKILL)
    for stream in doomed:
        assert "engine 0 is down: its process ended with signal 9 (SIGKILL)" in stream.rest()[-1]["error"]
    assert server.is_healthy(), "the other engine serves"
    refused = Stream(server, prompt="a", params=GREEDY, rank=0)
    if "error" in (line := refused.start()):
        assert refused.status == 503
        assert "engine 0 is down" in line["error"]
    assert read_answer(server, prompt=PROMPTS[0], params=GREEDY) == expected[PROMPTS[0]]
    for stream in safe:
        lines = [begun[stream], *stream.rest()]
        assert "".join(line["outputs"][0]["text"] for line in lines) == whole
    until(lambda: sorted(samples(server, "octavo:num_requests_running")) == ["0", "1"], "engine 0 is up again")
    until(lambda: len(server.children()) == 4)
    after = server.children()
    assert after["engine 0"] != before["engine 0"]
    assert after["engine 1"] == before["engine 1"]
    until(lambda: all(Stream(server, prompt="a", params=GREEDY, rank=0).start().get("outputs") for _ in range(4)))
    assert read_answer(server, prompt=PROMPTS[2], params=GREEDY, rank=0) == expected[PROMPTS[2]]


@needs_proc
def test_a_request_that_kills_two_engines_meets_no_third(server: LiveServer, expected: dict[str, str]) -> None:
    deadly: dict[str, Any] = {"prompt": [1, DEADLY, 2], "params": GREEDY}

    def send(rank: int) -> tuple[int, str]:
        stream = Stream(server, **deadly, rank=rank)
        line = stream.start()
        stream.close()
        return stream.status, line["error"]

    status, why = send(0)
    assert (status, "engine 0 is down" in why) == (503, True)
    status, why = send(1)
    assert (status, "the engine died 2 times while it computed this request" in why) == (400, True)
    until(lambda: sorted(samples(server, "octavo:num_requests_running")) == ["0", "1"], "both are up again")
    living = server.children()
    for rank in (0, 1):
        status, why = send(rank)
        assert (status, "so it is not tried again" in why) == (400, True)
        assert read_answer(server, prompt=PROMPTS[3], params=GREEDY, rank=rank) == expected[PROMPTS[3]]
    assert server.children() == living


@pytest.mark.parametrize("rank", [2, -1, "1", True, 0.0])
def test_a_rank_that_is_none_is_refused(server: LiveServer, rank: object) -> None:
    stream = Stream(server, prompt="a", params=GREEDY, rank=rank)
    assert f"data_parallel_rank is {rank!r}, allowed is 0 to 1" in stream.start()["error"]
    assert stream.status == 400


ROUTES = {
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/api/generate": {"prompt": "a", "stream": False},
}


@pytest.mark.parametrize("path", ROUTES)
def test_a_header_chooses_the_engine(path: str) -> None:
    engine = ScriptedEngine()
    body = {"model": "tiny", **ROUTES[path]}
    assert post(app_of(engine), path, body).status == 200
    assert post(app_of(engine), path, body, x_data_parallel_rank="3").status == 200
    assert engine.ranks == [None, 3]


@pytest.mark.parametrize("rank", ["", "-1", "one", "1.0", "9" * 10, "٣", "1, 2"])
def test_a_header_that_is_no_number_is_refused(rank: str) -> None:
    try:
        rank.encode("latin-1")
    except UnicodeEncodeError:
        rank = "\xb3"  # a superscript three, which is a digit too
    answer = post(app_of(), "/v1/completions", {"model": "tiny", "prompt": "a"}, x_data_parallel_rank=rank)
    assert answer.status == 400
    assert "the header x-data-parallel-rank is" in answer.error["message"]
