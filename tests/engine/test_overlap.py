"""The overlapped engine gives the plain engine's tokens: with stops, preemption, prefix hits, samples and aborts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.observe.events import EngineStarted, Preempted
from tests.conftest import TinyFolder

PROMPTS = [np.random.default_rng(length).integers(3, 160, length).tolist() for length in (1, 9, 17, 33, 48, 17)]


def params(index: int) -> SamplingParams:
    """Greedy and drawn, one sample and several, with penalties, stop tokens, length limits and min_tokens."""
    return SamplingParams(
        n=1 + index % 3,
        temperature=(0.0, 1.0)[index % 2],
        seed=index,
        max_tokens=(1, 2, 25)[index % 3],
        min_tokens=index % 2,
        stop_token_ids=range(3, 20),
        frequency_penalty=0.5 * (index % 2),
        logprobs=2 if index == 3 else None,
        prompt_logprobs=1 if index == 4 else None,
    )


def engine(folder: object, **options: Any) -> LLM:
    return LLM(
        str(folder), dtype="float32", skip_tokenizer_init=True, max_model_len=96, check_invariants=True, **options
    )


def answers(llm: LLM) -> list[Any]:
    outputs = llm.generate(PROMPTS * 2, [params(index) for index in range(len(PROMPTS) * 2)], use_tqdm=False)
    return [
        [(c.token_ids, c.finish_reason, c.stop_reason, c.logprobs) for c in output.outputs] + [output.prompt_logprobs]
        for output in outputs
    ]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_tokens_equal_the_plain_engines(name: str, tiny_folder: TinyFolder) -> None:
    folder = tiny_folder(name)
    with engine(folder) as plain:
        expected = answers(plain)
        start = next(event for event in plain.events if isinstance(event, EngineStarted))
    with engine(folder, async_scheduling=True, max_num_batched_tokens=20) as overlapped:
        assert answers(overlapped) == expected
        assert answers(overlapped) == expected  # now from the prefix tree
        assert overlapped.stats().num_used_blocks == 0
    tight = -(-96 // start.block_size) * start.num_groups + 1
    eager = {"num_gpu_blocks_override": tight, "schedule_conservativeness": 0}
    with engine(folder, async_scheduling=True, **eager) as overlapped:
        assert answers(overlapped) == expected
        assert any(isinstance(event, Preempted) for event in overlapped.events)


def test_leaving_a_stream_early_frees_everything(tiny_folder: TinyFolder) -> None:
    with engine(tiny_folder("llama"), async_scheduling=True) as llm:
        for _ in llm.stream(PROMPTS, SamplingParams(max_tokens=60, ignore_eos=True)):
            break
        before = llm.generate(PROMPTS[1], SamplingParams(temperature=0.0), use_tqdm=False)
        assert llm.stats().num_used_blocks == 0
        assert before[0].outputs[0].finish_reason == "length"
