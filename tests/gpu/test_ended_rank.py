"""A rank on a GPU of its own that is killed or stopped ends the engine at once: no rank is left, nor its memory."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM
from octavo.errors import EngineDeadError
from tests.conftest import TinyFolder
from tests.executor.test_ranks import workers_of
from tests.gpu.test_tensor_parallel import GREEDY, PROMPTS, answers, engine
from tests.server.live import LiveServer, Stream, is_running, live_and_clean, until

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

LONG = GREEDY.replace(max_tokens=80)


def two_ranks(folder: Path, **options: Any) -> LLM:
    return engine(folder, tensor_parallel_size=2, **options)


def why_it_ended(llm: LLM, number: int, rank: int) -> str:
    """Send a signal to a rank of an engine that computes. Returns why the engine ended; no rank is left."""
    workers = workers_of(os.getpid())
    assert set(workers) == {"worker 0", "worker 1"}
    stream = llm.stream(PROMPTS, LONG)
    for _ in range(4):  # past the prompts: captured steps run, and the next is launched
        next(iter(stream))
    os.kill(workers[f"worker {rank}"], number)
    with pytest.raises(EngineDeadError) as caught:
        list(stream)
    with pytest.raises(EngineDeadError):
        llm.generate(PROMPTS, use_tqdm=False)
    until(lambda: not any(map(is_running, workers.values())))
    return str(caught.value)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_engine_at_once(rank: int, eager: bool, tiny_folder: TinyFolder) -> None:
    """The other rank waits in a kernel for one that will not come. The next engine on these GPUs computes as before."""
    folder = tiny_folder("qwen3")
    with two_ranks(folder, enforce_eager=eager) as llm:
        expected = answers(llm)
        begin = time.monotonic()
        why = why_it_ended(llm, signal.SIGKILL, rank)
        assert time.monotonic() - begin < 10
    assert re.search(rf"worker {rank} \(rank {rank} of 2, .*cuda:{rank}.*\) ended: signal 9 \(SIGKILL\)", why), why
    assert not workers_of(os.getpid())
    with two_ranks(folder, enforce_eager=eager) as llm:
        assert answers(llm) == expected


def test_a_rank_that_is_stopped_ends_the_engine_after_the_time_limit(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_COLLECTIVE_TIMEOUT", "5")
    with two_ranks(tiny_folder("qwen3")) as llm:
        answers(llm)
        begin = time.monotonic()
        why = why_it_ended(llm, signal.SIGSTOP, 1)
        assert time.monotonic() - begin < 40
    assert "a signal has stopped it" in why
    assert not workers_of(os.getpid())


def test_a_server_starts_its_engine_again(tiny_folder: TinyFolder, tmp_path: Path) -> None:
    """Running requests get an error, later ones the answers from before."""
    options = {
        "model": str(tiny_folder("qwen3", max_position_embeddings=2048)),
        "skip_tokenizer_init": True,
        "max_model_len": 2048,
        "tensor_parallel_size": 2,
        "backend": "triton",
        "dtype": "float32",
        "distributed_executor_backend": None,
        "num_threads": None,
    }
    short, long = (
        {"prompt": {"prompt_token_ids": prompt}, "params": {"temperature": 0, "max_tokens": count, "ignore_eos": True}}
        for prompt, count in ((PROMPTS[1], 8), (PROMPTS[0], 1500))
    )
    with live_and_clean(tmp_path, engine=options) as server:
        expected = token_ids(server, short)
        streams = [Stream(server, **long) for _ in range(4)]
        for stream in streams:
            stream.start()
        workers = workers_of(server.children()["engine"])
        os.kill(workers["worker 0"], signal.SIGKILL)
        for stream in streams:
            assert "engine is down" in stream.rest()[-1]["error"]
            stream.close()
        server.wait_for_line(r"worker 0 \(rank 0 of 2, .*\) ended: signal 9 \(SIGKILL\)")
        until(server.is_healthy)
        until(lambda: not any(map(is_running, workers.values())))
        assert token_ids(server, short) == expected


def token_ids(server: LiveServer, request: dict[str, Any]) -> list[int]:
    stream = Stream(server, **request)
    lines = [stream.start(), *stream.rest()]
    stream.close()
    return [token for line in lines for token in line["outputs"][0]["token_ids"]]
