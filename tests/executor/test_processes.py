"""Workers in separate processes give an inline worker's results, and the end of one is noticed at once."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.config import EngineConfig
from octavo.distributed.world import Meeting, World
from octavo.engine.options import engine_config
from octavo.errors import ConfigError, EngineDeadError, ModelLoadError, OctavoError, OutOfMemoryError
from octavo.executor.rank_process import portable
from octavo.messages import BlockWrite, ForkRow, LogprobRow, NewRow, StepPlan, StepResult
from octavo.observe.events import EngineStarted, Preempted
from octavo.worker.plan import planned
from octavo.worker.task import WorkerTask
from tests.conftest import TinyFolder
from tests.engine.test_overlap import PROMPTS, answers, engine
from tests.server.live import Stream, is_running, live_and_clean, until

LONG = SamplingParams(max_tokens=1000, ignore_eos=True, detokenize=False)


def worker_of(process_id: int) -> int:
    """The process id of an engine's worker."""
    names = {}
    for task in Path(f"/proc/{process_id}/task").iterdir():
        for child in (task / "children").read_text().split():
            names[Path(f"/proc/{child}/cmdline").read_text().split("\0")[-2]] = int(child)
    return names["octavo: worker 0"]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_tokens_equal_an_inline_workers(name: str, tiny_folder: TinyFolder) -> None:
    """With stops, samples, penalties, log-probabilities, prefix hits and preemption; with steps planned ahead, and
    with plain ones."""
    with engine(tiny_folder(name), distributed_executor_backend="uni") as inline:
        expected = answers(inline)
        start = next(event for event in inline.events if isinstance(event, EngineStarted))
    with engine(tiny_folder(name), distributed_executor_backend="mp", max_num_batched_tokens=20) as llm:
        assert answers(llm) == expected
        assert answers(llm) == expected  # now from the prefix tree
        assert llm.stats().num_used_blocks == 0
    tight = -(-96 // start.block_size) * start.num_groups + 1
    options = {"num_gpu_blocks_override": tight, "schedule_conservativeness": 0}
    with engine(tiny_folder(name), distributed_executor_backend="mp", **options) as llm:
        assert answers(llm) == expected
        assert any(isinstance(event, Preempted) for event in llm.events)


def test_text_and_card_are_an_inline_workers() -> None:
    params, said = SamplingParams(temperature=0, max_tokens=8), []
    for backend in ("uni", "mp"):
        options = {"distributed_executor_backend": backend, "override_generation_config": {"top_k": 7}}
        with LLM("smollm2", max_model_len=512, **options) as llm:
            (output,) = llm.generate("Paper was invented in", params, use_tqdm=False)
            card = [line for line in llm.card if line[0] != "ready in"]
            said.append((output.outputs[0].text, card, llm.get_default_sampling_params()))
    assert said[0] == said[1]
    assert said[0][2] == SamplingParams(top_k=7)


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_worker_that_is_killed_ends_the_engine_at_once(is_ahead: bool, tiny_folder: TinyFolder) -> None:
    with engine(tiny_folder("llama"), distributed_executor_backend="mp", async_scheduling=is_ahead) as llm:
        worker = worker_of(os.getpid())
        stream = llm.stream(PROMPTS, LONG.replace(max_tokens=60))
        next(iter(stream))
        os.kill(worker, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(EngineDeadError, match=r"worker 0 ended: signal 9 \(SIGKILL\)"):
            for _ in stream:
                pass
        assert time.monotonic() - begin < 5
        with pytest.raises(EngineDeadError):
            llm.generate(PROMPTS, use_tqdm=False)
    assert not is_running(worker)


def test_a_worker_that_died_idle_is_noticed_by_the_next_step(tiny_folder: TinyFolder) -> None:
    with engine(tiny_folder("llama"), distributed_executor_backend="mp") as llm:
        os.kill(worker_of(os.getpid()), signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="worker 0 ended"):
            llm.generate(PROMPTS, use_tqdm=False)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"max_model_len": 96, "kv_cache_memory_bytes": 4096}, OutOfMemoryError),
        ({"max_model_len": 100_000}, ConfigError),
        ({"model": "/nowhere"}, ModelLoadError),
        ({"max_model_len": 96, "num_gpu_blocks_override": 2}, OutOfMemoryError),
    ],
)
def test_what_cannot_start_is_told_as_inline(
    options: dict[str, Any], kind: type[OctavoError], tiny_folder: TinyFolder
) -> None:
    options = {"model": str(tiny_folder("llama")), "skip_tokenizer_init": True, "num_threads": 1, **options}
    texts = []
    for backend in ("uni", "mp"):
        with pytest.raises(kind) as caught:
            LLM(**options, distributed_executor_backend=backend)
        assert type(caught.value) is kind
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    with pytest.raises(KeyError):
        worker_of(os.getpid())


def test_what_a_worker_warns_of_is_logged_here(tiny_folder: TinyFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "octavo"):
        engine(tiny_folder("llama"), distributed_executor_backend="mp", revision="old").close()
    assert [record.message for record in caplog.records if "revision 'old' is ignored" in record.message]


def test_all_that_crosses_is_plain_data() -> None:
    params = SamplingParams(n=2, stop=["x"], logit_bias={3: 1.0}, allowed_token_ids=[3, 4], prompt_logprobs=1)
    new = NewRow(1, [3, 4], 2, params, 2**63, 1, frozenset((2,)), ((5, 6),))
    changes: dict[str, Any] = {"freed_rows": [0], "new_rows": [new], "block_writes": [BlockWrite(1, 0, 0, [4])]}
    changes |= {"fork_rows": [ForkRow(2, 1, 1)], "copies": [(4, 5)], "rows": [1], "num_computed_tokens": [0]}
    plan = StepPlan(7, **changes, num_scheduled_tokens=[2], num_draws=[1, 1], spec_token_ids={0: [4]})
    row = LogprobRow([3, 4], [-0.5, -1.0], 1, [2])
    result = StepResult(7, [3, 4], offsets=[0, 2], logprobs={0: [row]}, prompt_logprobs={0: [row]})
    task = replace(
        WorkerTask.of(EngineConfig(), serves=True),
        world=World(rank=1, tensor_parallel_size=2),
        meeting=Meeting(port=1, listener=2, time_limit=3.0),
    )
    for message in (plan, result, task):
        assert pickle.loads(pickle.dumps(message)) == message


class UnportableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_faults_cross_as_they_are_or_by_name() -> None:
    ours, theirs, other = OutOfMemoryError("too much"), FloatingPointError("of a kernel"), UnportableError(1, 2)
    assert (type(portable(ours)), str(portable(ours))) == (OutOfMemoryError, "too much")
    crossed = pickle.loads(pickle.dumps(portable(theirs)))
    assert (type(crossed), str(crossed)) == (FloatingPointError, "of a kernel")
    assert "in the worker's process" in crossed.__notes__[0]
    assert str(portable(other)) == "UnportableError: 1 and 2"


PROGRAM = """
from octavo import LLM, SamplingParams
llm = LLM("smollm2", skip_tokenizer_init=True, max_model_len=2048, max_num_seqs=4, distributed_executor_backend="mp")
prompt = {"prompt_token_ids": [3, 4, 5]}
print("ready", flush=True)
try:
    for _ in llm.stream(prompt, SamplingParams(max_tokens=2000, ignore_eos=True, detokenize=False)):
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(len(llm.generate(prompt, SamplingParams(max_tokens=5, ignore_eos=True))[0].outputs[0].token_ids), flush=True)
llm.close()
"""


def start() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_worker_never_outlives_its_engine() -> None:
    with start() as process:
        worker = worker_of(process.pid)
        process.kill()
        until(lambda: not is_running(worker))


def test_ctrl_c_in_a_terminal_is_the_engines_alone() -> None:
    with start() as process:
        worker = worker_of(process.pid)
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readlines() == ["interrupted\n", "5\n"]
        assert process.wait(20) == 0
        assert not is_running(worker)


def test_a_server_whose_worker_dies_starts_its_engine_again(tmp_path: Path) -> None:
    with live_and_clean(tmp_path, engine={"distributed_executor_backend": "mp"}) as server:
        worker = worker_of(server.children()["engine"])
        stream = Stream(server, prompt="Once", params={"temperature": 0, "max_tokens": 1500, "ignore_eos": True})
        stream.start()
        os.kill(worker, signal.SIGKILL)
        assert "engine is down" in stream.rest()[-1]["error"]
        stream.close()
        until(server.is_healthy)
        assert worker_of(server.children()["engine"]) != worker


def test_a_worker_tells_its_memory_from_its_process(tiny_folder: TinyFolder) -> None:
    """Between steps, and while steps overlap. Which threads attend, and so need room to, is theirs to decide."""
    found = []
    sizes = {"skip_tokenizer_init": True, "max_num_seqs": 4, "max_model_len": 64}
    for options in ({}, {"distributed_executor_backend": "mp"}, {"async_scheduling": True}):
        with LLM(str(tiny_folder("llama")), **sizes, **options) as llm:
            held, line = llm.memory(), dict(llm.card)["memory"]
            plan = planned(engine_config(model=str(tiny_folder("llama")), **sizes, **options))
            now, all_planned = sum(held.values()), sum(plan[part] for part in held)
            told = float(line.rpartition(" measured now, ")[2].rstrip("%")) / 100
            assert abs(told - (now - all_planned) / all_planned) < 0.03, "threads that attend since then have room to"
            llm.generate([[3, 4, 5]], SamplingParams(max_tokens=3, detokenize=False), use_tqdm=False)
            found.append(llm.memory())
        assert found[-1].pop("workspace") > 0
    assert found[0] == found[1] == found[2]
    assert min(found[0][part] for part in ("weights", "activations", "rows", "KV blocks")) > 0
