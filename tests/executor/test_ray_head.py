# ruff: noqa: E402  (what needs Ray is imported where there is one)
"""The head of a Ray cluster is killed or stopped: the engine ends with a clear error, or goes on; nothing hangs or is
left behind, and on the next cluster the answers are the same."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'octavo[ray]'")

from ray.cluster_utils import Cluster

from octavo import LLM
from octavo.errors import EngineDeadError
from octavo.executor import remote
from tests.conftest import TinyFolder
from tests.engine.test_overlap import PROMPTS
from tests.executor.test_ray import LONG, actors, two_ranks
from tests.server.live import is_running, until

PATIENCE_S = 60.0


@contextmanager
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of two nodes with a core each, the engine's first."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    finally:
        for node in [*cluster.worker_nodes, cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def tokens(llm: LLM) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, LONG, use_tqdm=False)]


def dies(llm: LLM, expected: list[list[int]]) -> str:
    """The error that ends the engine. Until then it answers."""
    begin = time.monotonic()
    while time.monotonic() - begin < PATIENCE_S:
        try:
            assert tokens(llm) == expected
        except EngineDeadError as error:
            return str(error)
    raise AssertionError("the engine goes on")


LOST = r"the engine has lost the Ray cluster at {}: its driver ended .* Failed to connect to GCS within 3 seconds"
NODE = r"ended: Owner's node has crashed, the engine's: its raylet has ended"


@pytest.mark.parametrize(("part", "why"), [("gcs_server", LOST), ("raylet", NODE)], ids=["GCS", "raylet"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_head_that_is_gone_hangs_nothing(
    part: str, why: str, number: signal.Signals, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "3")
    with fresh(monkeypatch) as cluster, two_ranks(tiny_folder("llama")) as llm:
        expected, pids = tokens(llm), actors()
        os.kill(cluster.head_node.all_processes[part][0].process.pid, number)
        if number == signal.SIGSTOP:
            for _ in range(3):
                assert tokens(llm) == expected, "a head that hangs has no part in steps"
        else:
            assert re.search(why.format(cluster.address), dies(llm, expected))
        begin = time.monotonic()
        llm.close()
        assert time.monotonic() - begin < 2 * remote.PATIENCE_S
        until(lambda: not any(map(is_running, pids)))
    with fresh(monkeypatch), two_ranks(tiny_folder("llama")) as again:
        assert tokens(again) == expected


def test_a_head_that_hangs_is_told_when_it_is_joined(tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.executor.ray_link._JOIN_S", 3.0)
    with fresh(monkeypatch) as cluster:
        os.kill(cluster.head_node.all_processes["gcs_server"][0].process.pid, signal.SIGSTOP)
        with pytest.raises(
            EngineDeadError, match=f"the Ray cluster at {cluster.address} took more than 3 s to be joined"
        ):
            two_ranks(tiny_folder("llama"))
