"""The whole engine against transformers in float32, family by family: the same greedy tokens for every
block size, chunking, amount of memory and batch; log-probabilities equal to 1e-4.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from octavo import LLM, RequestOutput, SamplingParams
from octavo.kernels.device import Device
from octavo.observe.events import EngineStarted, Preempted
from tests.conftest import TinyFolder
from tests.tiny_models import TINY

NEW_TOKENS = 14
MAX_MODEL_LEN = 96
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
#: block size -> token budget of a step
SETTINGS = {8: 7, 16: 64, 32: 512}
#: longrope changes its factors at the trained length, and our model is built for max_model_len, so stay beyond it
LENS = (17, 18, 24, 33, 48, 64)


def prompts_of(seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 160, length).tolist() for length in LENS]


@cache
def oracle(folder: Path) -> Any:
    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@cache
def logprobs(folder: Path, sequence: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """transformers' log-probabilities [len - 1, V] after every token but the last."""
    with torch.inference_mode():
        return oracle(folder)(torch.tensor([sequence[:-1]])).logits[0].log_softmax(-1).numpy()


def check_greedy(folder: Path, outputs: list[RequestOutput]) -> None:
    """If each token is the best after those before it, then transformers would generate them."""
    for output in outputs:
        prompt, (answer,) = output.prompt_token_ids, tokens([output])
        best = logprobs(folder, (*prompt, *answer))[len(prompt) - 1 :].argmax(-1)
        assert len(answer) == NEW_TOKENS
        assert answer == best.tolist()


def engine(folder: Path, backend: Device, **options: Any) -> LLM:
    return LLM(
        str(folder),
        dtype="float32",
        skip_tokenizer_init=True,
        backend=backend.name,
        max_model_len=MAX_MODEL_LEN,
        check_invariants=True,
        **options,
    )


def least_blocks(llm: LLM) -> int:
    """The smallest pool that holds one longest sequence, the null block included."""
    start = next(event for event in llm.events if isinstance(event, EngineStarted))
    return -(-MAX_MODEL_LEN // start.block_size) * start.num_groups + 1


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


#: one family for each kind of attention: the others differ from these in what no setting of an engine touches
EVERY_SETTING = {"llama", "mistral", "phi3", "phi3-longrope", "gemma2", "gemma3", "gpt2", "opt"}
#: the scheduler and the cache do not know the backend: all settings, and steps of few tokens, are for the faster one
CASES = [("reference", name, 8) for name in TINY] + [
    ("cpu", name, size) for name in TINY for size in SETTINGS if size == 8 or name in EVERY_SETTING
]
#: families whose requests are preempted and forked on the slower backend too: one cache group, and several
CROWDED = {"llama", "gemma3"}


@pytest.mark.parametrize(("backend", "name", "block_size"), CASES, indirect=["backend"])
def test_tokens_equal_transformers(name: str, block_size: int, backend: Device, tiny_folder: TinyFolder) -> None:
    folder, seed = tiny_folder(name), block_size
    budget = SETTINGS[block_size] if backend.name == "cpu" else 40
    options = {"block_size": block_size, "max_num_batched_tokens": budget}
    with engine(folder, backend, **options) as llm:
        outputs = llm.generate(prompts_of(seed), GREEDY, use_tqdm=False)
        check_greedy(folder, outputs)
        expected = tokens(outputs)
        again = llm.generate(prompts_of(seed), GREEDY, use_tqdm=False)  # now from the prefix tree
        assert tokens(again) == expected
        assert all(output.num_cached_tokens > 0 for output in again if len(output.prompt_token_ids) > block_size)
        assert llm.stats().num_used_blocks == 0
        num_blocks = least_blocks(llm)
    if backend.name == "cpu" or name in CROWDED:
        check_crowded(folder, backend, expected, seed, num_gpu_blocks_override=num_blocks, **options)


def check_crowded(folder: Path, backend: Device, expected: list[list[int]], seed: int, **options: Any) -> None:
    """The same tokens where blocks are so few that requests are preempted, and where three samples share them."""
    with engine(folder, backend, **options) as llm:
        assert tokens(llm.generate(prompts_of(seed), GREEDY, use_tqdm=False)) == expected
        samples = llm.generate(prompts_of(seed), GREEDY.replace(n=3), use_tqdm=False)
        assert [[c.token_ids for c in output.outputs] for output in samples] == [[answer] * 3 for answer in expected]
        assert any(isinstance(event, Preempted) for event in llm.events)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_logprobs_equal_transformers(name: str, backend: Device, tiny_folder: TinyFolder) -> None:
    folder = tiny_folder(name)
    params = GREEDY.replace(logprobs=4, prompt_logprobs=3)
    with engine(folder, backend, max_num_batched_tokens=11) as llm:
        outputs = llm.generate(prompts_of(1), params, use_tqdm=False)
    check_greedy(folder, outputs)
    for output in outputs:
        rows = [*(output.prompt_logprobs or []), *(output.outputs[0].logprobs or [])]
        sequence = output.prompt_token_ids + output.outputs[0].token_ids
        truth = logprobs(folder, tuple(sequence))
        assert rows[0] is None
        assert len(rows) == len(sequence)
        for position in range(1, len(sequence)):
            row, best = rows[position], np.sort(truth[position - 1])[::-1]
            assert row is not None
            assert sequence[position] in row
            for token_id, entry in row.items():
                assert entry.logprob == pytest.approx(truth[position - 1][token_id], abs=1e-4)
                assert entry.rank == 1 + int((best > truth[position - 1][token_id]).sum())
