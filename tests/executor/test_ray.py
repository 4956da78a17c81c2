# ruff: noqa: E402  (what needs Ray is imported where there is one)
"""Ranks as actors on a Ray cluster of two nodes, which are separate raylets on this machine: their answers are one
rank's, and one that dies, stops, or loses its node ends the engine and is named."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'octavo[ray]'")

from ray.cluster_utils import Cluster

from octavo import LLM, SamplingParams
from octavo.config import EngineConfig
from octavo.distributed.world import LocalRanks
from octavo.errors import BackendUnavailableError, ConfigError, EngineDeadError, ModelLoadError
from octavo.executor.ray import _on_its_node
from octavo.executor.ray_link import Spot
from octavo.executor.remote import PATIENCE_S
from octavo.worker.task import WorkerTask
from tests.conftest import TinyFolder
from tests.engine.test_overlap import PROMPTS, answers, engine
from tests.server.live import is_running, until

LONG = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with a core each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture(autouse=True)
def joined(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)


def two_ranks(folder: object, **options: Any) -> LLM:
    options = {"tensor_parallel_size": 2, "backend": "cpu", **options}
    return engine(folder, distributed_executor_backend="ray", **options)


def actors() -> list[int]:
    """Process ids, in the order in which they started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(b"ray::RayRank"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return sorted(found)


def started_by(pid: int) -> list[int]:
    """Its children, their children, and so on."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def dies(llm: LLM, what: str) -> str:
    """The message of the error that ends the engine."""
    begin = time.monotonic()
    with pytest.raises(EngineDeadError, match=what) as caught:
        list(llm.stream(PROMPTS, LONG))
    assert time.monotonic() - begin < 30
    return str(caught.value)


def test_ranks_on_two_nodes_give_one_ranks_answers(tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("llama")
    with engine(folder, backend="cpu") as one:
        expected = [[choice[:3] for choice in output[:-1]] for output in answers(one)]
    with two_ranks(folder) as llm:
        assert [[choice[:3] for choice in output[:-1]] for output in answers(llm)] == expected
        nodes = re.findall(r"the CPU \(1 thread\) of node \S+ \((\w{8})\)", dict(llm.card)["ranks"])
        assert len(set(nodes)) == 2
        assert llm.memory()["weights"] > 0
        pids = actors()
        assert len(pids) == 2
        begin = time.monotonic()
    assert time.monotonic() - begin < PATIENCE_S, "nobody is waited for in vain"
    until(lambda: not any(map(is_running, pids)))


def test_stages_may_be_actors_on_two_nodes(tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("gemma2")
    with engine(folder, backend="cpu") as one:
        expected = [[choice[:3] for choice in output[:-1]] for output in answers(one)]
    with two_ranks(folder, tensor_parallel_size=1, pipeline_parallel_size=2) as llm:
        assert [[choice[:3] for choice in output[:-1]] for output in answers(llm)] == expected
        os.kill(actors()[0], signal.SIGKILL)
        dies(llm, r"worker \d \(rank \d of 2, stage \d, on the CPU \(1 thread\) of node .*\) ended: Worker")


def test_several_engines_share_a_cluster(tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for options in ({"distributed_executor_backend": "ray", "data_parallel_size": 2}, {}):
        with engine(tiny_folder("qwen3"), backend="cpu", **options) as llm:
            outputs = llm.generate(PROMPTS, LONG, use_tqdm=False)
            found.append([output.outputs[0].token_ids for output in outputs])
            assert len(actors()) == options.get("data_parallel_size", 0)
    assert found[0] == found[1]
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ConfigError, match="engines on Ray share one cluster, but none runs here: start one with `ray"):
        two_ranks(tiny_folder("qwen3"), data_parallel_size=2)


def test_one_rank_may_be_an_actor_too(tiny_folder: TinyFolder) -> None:
    found = []
    for options in ({"distributed_executor_backend": "ray"}, {}):
        with engine(tiny_folder("qwen3"), backend="cpu", **options) as llm:
            found.append([output.outputs[0].token_ids for output in llm.generate(PROMPTS, LONG, use_tqdm=False)])
    assert found[0] == found[1]


def test_an_actor_that_dies_ends_the_engine_and_another_starts(tiny_folder: TinyFolder) -> None:
    with two_ranks(tiny_folder("llama")) as llm:
        pids = actors()
        os.kill(pids[1], signal.SIGKILL)
        text = dies(llm, r"worker \d \(rank \d of 2, on the CPU \(1 thread\) of node \S+ \(\w{8}\)\) ended: Worker")
        with pytest.raises(EngineDeadError, match=re.escape(text[:60])):
            llm.generate(PROMPTS, LONG, use_tqdm=False)
    with two_ranks(tiny_folder("llama")) as again:
        until(lambda: not any(map(is_running, pids)))
        assert len(again.generate(PROMPTS, LONG, use_tqdm=False)) == len(PROMPTS)


def test_last_words_come_from_the_node(tiny_folder: TinyFolder) -> None:
    with two_ranks(tiny_folder("llama")) as llm:
        os.kill(actors()[0], signal.SIGABRT)
        dies(llm, r"ended: .*; its last words: ")


def test_an_actor_that_is_stopped_is_found_by_the_time_limit(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_COLLECTIVE_TIMEOUT", "10")
    with two_ranks(tiny_folder("llama")) as llm:
        pids = actors()
        os.kill(pids[1], signal.SIGSTOP)
        dies(llm, r"worker \d \(rank \d of 2, .* node .*\) gave no answer for 10 s: it hangs, and was killed")
    until(lambda: not any(map(is_running, pids)))


def test_too_many_ranks_are_refused_with_the_numbers(tiny_folder: TinyFolder) -> None:
    what = "asks for 3 ranks with 1 CPU each, but the Ray cluster has 2 CPUs on 2 nodes, room for 2 ranks; `ray start"
    with pytest.raises(ConfigError, match=what):
        two_ranks(tiny_folder("llama"), tensor_parallel_size=3)
    what = "tensor_parallel_size is 2 and data_parallel_size 2, which asks for 4 ranks with 1 CPU each"
    with pytest.raises(ConfigError, match=what):
        two_ranks(tiny_folder("llama"), data_parallel_size=2)
    with pytest.raises(ConfigError, match=r"2 ranks with 2 CPUs each, .* has 2 CPUs on 2 nodes, room for 0 ranks"):
        two_ranks(tiny_folder("llama"), num_threads=2)
    with pytest.raises(ConfigError, match=r"2 ranks with 1 GPU each, .* has 0 GPUs on 2 nodes"):
        two_ranks(tiny_folder("llama"), backend="triton")


def test_a_busy_cluster_is_refused_after_the_time_limit(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_ranks(tiny_folder("llama")) as llm:
        monkeypatch.setenv("OCTAVO_COLLECTIVE_TIMEOUT", "1")
        with pytest.raises(ConfigError, match="for 1 s the Ray cluster had no place for them, with 0 CPUs free"):
            two_ranks(tiny_folder("llama"))
        assert len(llm.generate(PROMPTS, LONG, use_tqdm=False)) == len(PROMPTS)  # it has kept its membership


def test_what_cannot_start_is_told_as_elsewhere(tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadError, match="/nowhere"):
        two_ranks("/nowhere")
    monkeypatch.setattr("octavo.executor.ray.installed_version", lambda: "0.0.1")
    with pytest.raises(BackendUnavailableError, match=r"rank 0 on node .* has Octavo .*, and the engine 0\.0\.1"):
        two_ranks(tiny_folder("llama"))


@pytest.mark.parametrize(
    ("address", "error", "what"),
    [
        ("ray://127.0.0.1:10001", ConfigError, "a Ray client's"),
        ("127.0.0.1:1", BackendUnavailableError, "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1"),
        ("nonsense", BackendUnavailableError, "cannot be joined: Invalid address format: nonsense"),
    ],
)
def test_an_address_without_a_cluster_is_named(
    address: str, error: type[Exception], what: str, monkeypatch: pytest.MonkeyPatch, tiny_folder: TinyFolder
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(error, match=what):
        two_ranks(tiny_folder("llama"))


PROGRAM = """
import sys
from octavo import LLM
options = {"skip_tokenizer_init": True, "max_model_len": 96, "backend": "cpu", "tensor_parallel_size": 2}
llm = LLM(sys.argv[1], distributed_executor_backend="ray", **options)
print("ready", flush=True)
input()
"""


@pytest.mark.parametrize("address", [None, "local"])
def test_actors_do_not_outlive_their_engine(
    address: str | None, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither do the processes of a cluster that the engine has started."""
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    command = [sys.executable, "-c", PROGRAM, str(tiny_folder("llama"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, env=environment, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert "ready\n" in process.stdout
        pids = actors() + started_by(process.pid)
        assert len(actors()) == 2
        process.kill()
        process.wait()
        begin = time.monotonic()
        until(lambda: not any(map(is_running, pids)))
        assert time.monotonic() - begin < 10


def test_a_node_that_dies_ends_the_engine(cluster: Cluster, tiny_folder: TinyFolder) -> None:
    node = next(iter(cluster.worker_nodes))
    with two_ranks(tiny_folder("llama")) as llm:
        pids = actors()
        cluster.remove_node(node, allow_graceful=False)
        dies(llm, r"worker 1 \(rank 1 of 2, .* node .*\) ended: its node is gone, or cannot be reached")
        until(lambda: not any(map(is_running, pids)))
    cluster.add_node(num_cpus=1)
    with two_ranks(tiny_folder("llama")) as again:
        assert len(again.generate(PROMPTS, LONG, use_tqdm=False)) == len(PROMPTS)


def test_a_rank_counts_those_of_its_node_alone() -> None:
    spots = [Spot("10.0.0.1", "a", ("0",), ""), Spot("10.0.0.1", "a", ("1",), ""), Spot("10.0.0.2", "b", ("0",), "")]
    task = WorkerTask.of(EngineConfig())
    found = [_on_its_node(task, rank, spots).world.local for rank in range(3)]
    assert found == [LocalRanks(rank=0, size=2), LocalRanks(rank=1, size=2), LocalRanks(rank=0, size=1)]
