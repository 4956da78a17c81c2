"""Prefill and decode in engines of their own: behind one address, and as two servers."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from tests.processes.test_block_traffic import free_port
from tests.server.live import LiveServer, live, read_answer, until
from tests.server.test_data_parallel import needs_proc, samples

PROMPTS = [
    "The capital of France is a city on a river, where " * 4,
    "Once upon a time there was a lighthouse, and " * 5,
]
GREEDY = {"temperature": 0, "max_tokens": 8}

pytestmark = needs_proc


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    with LLM("smollm2", num_threads=1, max_model_len=2048) as llm:
        outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    return {str(output.prompt): output.outputs[0].text for output in outputs}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live(
        tmp_path_factory.mktemp("tmp"), transfer={"prefill_engines": 1, "kv_min_tokens": 16, "kv_transfer_timeout": 1.0}
    ) as server:
        yield server
        children = server.children()
        assert server.stop() == 0
        assert server.leftovers(children) == []


def prefilled(server: LiveServer) -> float:
    """Prompts that the prefill engine has computed."""
    return samples(server, "octavo:generation_tokens_total").get("1", 0.0)


def test_one_engine_computes_prompts_and_the_other_answers(server: LiveServer, expected: dict[str, str]) -> None:
    assert sorted(server.children()) == ["engine 0", "engine 1", "front end 0"]
    assert any("1 of these, and 1 that compute prompts for them" in line for line in server.lines)
    server.wait_for_line("the prefill engine is connected")
    for prompt, text in expected.items():
        assert read_answer(server, prompt=prompt, params=GREEDY) == text
    until(lambda: prefilled(server) == 2)
    hits = samples(server, "octavo:prefix_cache_hits_total")
    assert hits["0"] > 60, "the engine that answers found the blocks"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_prefill_engine_that_is_gone_costs_no_answer(
    how: signal.Signals, server: LiveServer, expected: dict[str, str]
) -> None:
    before = server.children()
    os.kill(before["engine 1"], how)
    for number, (prompt, text) in enumerate(expected.items()):
        assert read_answer(server, prompt=prompt, params=GREEDY, cache_salt=f"{how} {number}") == text
    assert server.is_healthy()
    if how == signal.SIGSTOP:
        os.kill(before["engine 1"], signal.SIGCONT)
        return
    until(lambda: server.children().get("engine 1", before["engine 1"]) != before["engine 1"])
    until(lambda: "1" in samples(server, "octavo:generation_tokens_total"))
    until(lambda: sum("the prefill engine is connected" in line for line in server.lines) == 2)
    assert read_answer(server, prompt=PROMPTS[0], params=GREEDY, cache_salt="again") == expected[PROMPTS[0]]
    until(lambda: prefilled(server) == 1)


def test_two_servers_on_two_machines(tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_KV_SECRET", secrets.token_hex(16))
    address = f"127.0.0.1:{free_port()}"
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    decodes = {"role": "decode", "kv_peer": (address,), "kv_min_tokens": 16}
    with (
        live(folders[0], transfer={"role": "prefill", "kv_listen": address}) as prefill,
        live(folders[1], transfer=decodes) as decode,
    ):
        decode.wait_for_line(f"the prefill engine at {address} is connected")
        for prompt, text in expected.items():
            assert read_answer(decode, prompt=prompt, params=GREEDY) == text
        until(lambda: samples(prefill, "octavo:generation_tokens_total").get("0") == 2)
        assert prefill.stop() == decode.stop() == 0
