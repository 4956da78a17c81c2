"""Prefill and decode apart, each in several ranks: a rank's part of a block goes to the rank with its number."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from octavo import LLM, RequestOutput, SamplingParams
from octavo.config import BackendConfig
from octavo.engine import assemble
from octavo.engine.options import engine_config
from octavo.errors import ConfigError
from octavo.processes.process_client import ProcessClient
from octavo.processes.traffic_tasks import traffic_tasks
from octavo.server_config import TransferConfig
from tests.conftest import TinyFolder
from tests.distributed.conftest import threaded_ranks
from tests.processes.engines import GREEDY, OPTIONS, ThreadEngine, borrows, lends
from tests.processes.mapped_pools import map_pools
from tests.processes.test_block_traffic import PROMPTS, connected
from tests.server.live import until

TWO = {"tensor_parallel_size": 2}


@pytest.fixture(autouse=True)
def _ranks_are_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    one = assemble.build_executor
    several: Callable[..., object] = threaded_ranks
    monkeypatch.setattr(
        assemble,
        "build_executor",
        lambda config, **rest: (several if _num_ranks(config.backend) > 1 else one)(config, **rest),
    )


def _num_ranks(backend: BackendConfig) -> int:
    return backend.tensor_parallel_size * backend.pipeline_parallel_size


@contextmanager
def pair(
    directory: Path, model: Path, lender: dict[str, int], borrower: dict[str, int]
) -> Iterator[list[ThreadEngine]]:
    address = f"unix:{directory}/blocks"
    sides = (lends(address), lender), (borrows(address), borrower)
    engines = [ThreadEngine(directory, model, task, **layout) for task, layout in sides]
    try:
        yield engines
    finally:
        for engine in reversed(engines):
            engine.stop()


@pytest.mark.parametrize("is_mapped", [False, True])
@pytest.mark.parametrize("layout", [(2, 1), (1, 2)])
def test_blocks_of_all_ranks_travel(
    layout: tuple[int, int], is_mapped: bool, tmp_path: Path, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_mapped:
        map_pools(monkeypatch)
    model = tiny_folder("llama")
    with LLM(str(model), **OPTIONS) as one:
        outputs = one.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], GREEDY, use_tqdm=False)
    options = dict(zip(("tensor_parallel_size", "pipeline_parallel_size"), layout, strict=True))
    with pair(tmp_path, model, options, options) as (_prefill, decode):
        until(lambda: connected(decode))
        assert decode.answer(PROMPTS) == [list(output.outputs[0].token_ids) for output in outputs]
        assert [(each.why, each.num_tokens) for each in decode.came] == [("", (len(p) - 1) // 16 * 16) for p in PROMPTS]


def test_prompt_logprobs_are_one_ranks_and_computed_here(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    model, prompt = tiny_folder("llama"), {"prompt_token_ids": PROMPTS[3]}
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, detokenize=False, prompt_logprobs=3)
    with LLM(str(model), **OPTIONS) as one:
        expected = one.generate([prompt], params, use_tqdm=False)[0]

    async def ask(client: ProcessClient) -> RequestOutput:
        return [output async for output in client.generate(prompt, params)][-1]

    with pair(tmp_path, model, TWO, TWO) as (_prefill, decode):
        until(lambda: connected(decode))
        found = decode.with_client(ask)
        assert not decode.came, "whose log-probabilities it wants, it computes"
    assert found.outputs[0].token_ids == expected.outputs[0].token_ids
    assert len(found.prompt_logprobs) == len(PROMPTS[3])
    for ours, theirs in zip(found.prompt_logprobs[1:], expected.prompt_logprobs[1:], strict=True):
        assert {token: row.rank for token, row in ours.items()} == {token: row.rank for token, row in theirs.items()}
        assert [row.logprob for row in ours.values()] == pytest.approx(
            [row.logprob for row in theirs.values()], abs=1e-4
        )


def test_another_number_of_ranks_is_refused(
    tmp_path: Path, tiny_folder: TinyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with pair(tmp_path, tiny_folder("llama"), TWO, {}) as (_prefill, decode):
        until(lambda: any("tensor_parallel_size is '2', and this engine's '1'" in each for each in caplog.messages))
        assert decode.answer(PROMPTS[:1])[0], "it computes by itself"


def test_a_rank_that_is_gone_moves_nothing(tiny_folder: TinyFolder) -> None:
    ranks = threaded_ranks(engine_config(model=str(tiny_folder("llama")), **OPTIONS, tensor_parallel_size=2))
    mover = ranks.mover()
    data = np.arange(3 * mover.block_bytes, dtype=np.uint64).astype(np.uint8).reshape(3, -1)
    read = np.zeros_like(data)
    mover.write(mover.fence(), [5, 9, 7], data)
    mover.read(mover.fence(), [9, 5], read[:2])
    assert np.array_equal(read[:2], data[1::-1])
    with pytest.raises(RuntimeError, match="IndexError"):
        mover.read(mover.fence(), [1 << 20], read[:1])
    mover.wait(mover.fence())
    with socket.socket(fileno=os.dup(ranks._moves[1]._end.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
    with pytest.raises(RuntimeError, match="a rank moves no blocks any more"):
        mover.read(mover.fence(), [5], read[:1])
    ranks.close()


def test_ranks_of_other_machines_hand_on_no_blocks() -> None:
    config = engine_config(model="smollm2", distributed_executor_backend="ray")
    with pytest.raises(ConfigError, match=r"distributed_executor_backend is 'ray', allowed .* is 'mp'"):
        traffic_tasks(TransferConfig(role="prefill"), config, "/tmp")
