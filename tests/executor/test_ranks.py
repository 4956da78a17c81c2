"""Ranks as processes: their answers are one rank's, and one that ends, stops or hangs ends the engine and is named."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, LoRARequest, SamplingParams
from octavo.errors import BackendUnavailableError, ConfigError, EngineDeadError
from tests.conftest import TinyFolder
from tests.engine.test_overlap import PROMPTS, answers, engine
from tests.executor.conftest import asked_along
from tests.server.live import is_running, until

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False)
LONG = GREEDY.replace(max_tokens=60)


def workers_of(process_id: int) -> dict[str, int]:
    """name -> process id, of an engine's workers."""
    names = {}
    for task in Path(f"/proc/{process_id}/task").iterdir():
        for child in (task / "children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            if len(words) > 1 and words[-2].startswith("octavo: worker"):
                names[words[-2].removeprefix("octavo: ")] = int(child)
    return names


def two_ranks(folder: object, **options: object) -> LLM:
    return engine(folder, tensor_parallel_size=2, backend="cpu", num_threads=1, **options)


def test_answers_are_one_ranks_until_a_rank_stops(
    tiny_folder: TinyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[Any]
) -> None:
    """With adapters, of which one cannot be read. Steps overlap: each result is asked for along with the next plan. A
    stopped rank is found by the time limit, and killed with the others."""
    from tests.lora.written_adapters import write_adapter  # it needs torch, as ranks do

    folders = [write_adapter(tmp_path / name, tiny_folder("llama"), seed=len(name)) for name in ("a", "bb")]
    asked = [LoRARequest(folder.name, len(folder.name), str(folder)) for folder in folders]
    monkeypatch.setenv("OCTAVO_COLLECTIVE_TIMEOUT", "3")  # a busy machine may pause a rank for a second
    with engine(tiny_folder("llama"), backend="cpu", enable_lora=True) as one:
        adapted = one.generate(PROMPTS[:2], GREEDY, False, lora_request=asked[0])
        expected = [[choice[:3] for choice in output[:-1]] for output in answers(one)]
    with two_ranks(tiny_folder("llama"), enable_lora=True) as llm:
        found = [llm.generate(PROMPTS[:2], GREEDY, False, lora_request=each) for each in asked]
        assert [one.outputs[0].token_ids for one in found[0]] == [one.outputs[0].token_ids for one in adapted]
        shutil.rmtree(folders[0])
        gone, there = llm.generate(PROMPTS[:2], GREEDY, False, lora_request=asked)
        assert (gone.outputs[0].finish_reason, there.outputs[0].finish_reason) == ("error", "length")
        assert [[choice[:3] for choice in output[:-1]] for output in answers(llm)] == expected
        asked, computing = asked_along(sent)
        assert asked in (computing, computing[:-1]), "one may be held"
        exchanging = "2, each with a part of every layer, exchanging by gloo"
        assert dict(llm.card)["ranks"] == f"{exchanging}: the CPU (1 thread), the CPU (1 thread)"
        workers = workers_of(os.getpid())
        assert set(workers) == {"worker 0", "worker 1"}
        stream = llm.stream(PROMPTS, LONG)
        next(iter(stream))
        os.kill(workers["worker 1"], signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(EngineDeadError, match=r"worker 1 \(rank 1 of 2, on the CPU.*a signal has stopped it"):
            list(stream)
        assert time.monotonic() - begin < 60, "the limit is 3 s, not the usual 240"
        until(lambda: not any(map(is_running, workers.values())))
    assert not workers_of(os.getpid())


PROGRAM = """
import os, sys
from octavo import LLM, SamplingParams
llm = LLM(sys.argv[1], skip_tokenizer_init=True, max_model_len=96, backend="cpu", tensor_parallel_size=2)
print("ready", flush=True)
for _ in llm.stream({"prompt_token_ids": [3, 4, 5]}, SamplingParams(max_tokens=90, ignore_eos=True, detokenize=False)):
    pass
input()
"""


def test_a_stopped_rank_does_not_outlive_its_engine(tiny_folder: TinyFolder) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tiny_folder("llama"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        workers = workers_of(process.pid)
        assert len(workers) == 2
        os.kill(workers["worker 1"], signal.SIGSTOP)
        until(lambda: " T " in Path(f"/proc/{workers['worker 1']}/stat").read_text())
        process.kill()
        process.wait()
        until(lambda: not any(map(is_running, workers.values())))


def test_a_layout_that_does_not_work_leaves_no_rank(tiny_folder: TinyFolder) -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel_size is 3, .*: allowed are 1, 2, 4$"):
        engine(tiny_folder("gpt2"), tensor_parallel_size=3, backend="cpu")
    assert not workers_of(os.getpid())


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.distributed.world.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'octavo\[distributed\]'"):
        LLM("smollm2", tensor_parallel_size=3)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.distributed.world.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'octavo\[ray\]'"):
        LLM("smollm2", distributed_executor_backend="ray")


def test_what_ray_cannot_do_is_refused_by_both_names() -> None:
    with pytest.raises(ConfigError, match="device is 'cuda:1', and distributed_executor_backend is 'ray'"):
        LLM("smollm2", distributed_executor_backend="ray", device="cuda:1")


@pytest.mark.parametrize("text", ["0", "x", "-1", "1e9"])
def test_a_bad_time_limit_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_COLLECTIVE_TIMEOUT", text)
    with pytest.raises(ConfigError, match=f"OCTAVO_COLLECTIVE_TIMEOUT is '{text}', allowed is a number from 1"):
        LLM("smollm2", tensor_parallel_size=3)
