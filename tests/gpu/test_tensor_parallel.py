"""Several ranks with GPU kernels give one rank's tokens: on GPUs of their own, on one together, and without any.

With NCCL the all-reduces are inside the CUDA graphs. Ranks that share a GPU exchange through the host, so their steps
are launched kernel by kernel. Under Triton's interpreter each rank's GPU is the CPU.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.executor import processes
from tests import test_real_models as real_models
from tests.conftest import TinyFolder
from tests.gpu.device import ON_GPU

PROMPTS = [list(range(3, 3 + length)) for length in (1, 37, 9)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, detokenize=False)
PARAMS = [GREEDY, GREEDY.replace(temperature=0.9, top_k=5, seed=3, n=2), GREEDY]


def engine(folder: object, **options: Any) -> LLM:
    options = {"backend": "triton", "dtype": "float32", "max_num_batched_tokens": 24} | options
    return LLM(
        str(folder), skip_tokenizer_init=True, max_model_len=96, max_num_seqs=8, num_gpu_blocks_override=64, **options
    )


def answers(llm: LLM, params: list[SamplingParams] = PARAMS) -> list[list[list[int]]]:
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [[one.token_ids for one in output.outputs] for output in outputs]


def check(folder: object, **options: Any) -> str:
    """Twice, so that captured steps run, too. Returns the card's line about ranks."""
    with engine(folder) as one:
        expected = answers(one)
    with engine(folder, tensor_parallel_size=2, **options) as two:
        assert answers(two) == expected
        assert answers(two) == expected
        return dict(two.card)["ranks"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2", "qwen2-moe"])
def test_two_gpus_give_ones_tokens(name: str, eager: bool, tiny_folder: TinyFolder) -> None:
    card = check(tiny_folder(name), enforce_eager=eager, enable_expert_parallel="moe" in name)
    assert card.endswith("exchanging by peer memory: cuda:0, cuda:1")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_a_real_models_text() -> None:
    """With four heads of queries, and one of keys and values that both ranks have."""
    options = {"dtype": "float32", "backend": "triton", "tensor_parallel_size": 2}
    with real_models.open_model("gemma3-270m", **options) as llm:
        real_models.check_float32_text("gemma3-270m", llm)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(("name", "redundant"), [("qwen3-moe", 0), ("qwen2-moe", 2), ("deepseek-v3", 4)])
def test_experts_change_places_between_gpus(
    name: str, redundant: int, eager: bool, tiny_folder: TinyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """While captured steps run, which find the new weights at their old addresses."""
    caplog.set_level(logging.INFO, "octavo")
    plan = {"window_size": 6, "step_interval": 7, "num_redundant_experts": redundant}
    options = {"tensor_parallel_size": 2, "enable_expert_parallel": True, "enable_eplb": True, "eplb_config": plan}
    with engine(tiny_folder(name)) as one:
        expected = answers(one)
    with engine(tiny_folder(name), enforce_eager=eager, **options) as two:
        for _ in range(4):
            assert answers(two) == expected
    turns = [text for text in caplog.messages if "balancedness" in text]
    assert len(turns) > 2
    assert any(" 0 moved" not in text for text in turns), "placements changed"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_draw_random_weights_as_one_does(tiny_folder: TinyFolder) -> None:
    """In bfloat16, where sums round: prompts and first tokens only."""
    first = [each.replace(max_tokens=1) for each in PARAMS]
    found = []
    for num_ranks in (1, 2):
        options = {"load_format": "dummy", "dtype": "bfloat16", "tensor_parallel_size": num_ranks}
        with engine(tiny_folder("qwen3"), **options) as llm:
            found.append(answers(llm, first))
    assert found[0] == found[1]


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_ranks_may_share_a_gpu(name: str, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_RANKS_PER_GPU", "2")
    card = check(tiny_folder(name))
    assert card.endswith("exchanging by gloo: cuda:0, cuda:0")


@pytest.mark.skipif(ON_GPU, reason="the tests above ask the same of GPUs")
def test_interpreted_ranks_give_the_hosts_tokens(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a model whose ranks divide the experts of its layers, and cut the MLP of the second one; also with a top_k.
    The experts change places after the first step."""
    caplog.set_level(logging.INFO, "octavo")
    monkeypatch.setattr(processes, "TARGET", "tests.gpu.interpreted_rank:main")
    folder = tiny_folder("qwen2-moe", num_hidden_layers=2)
    params = [GREEDY.replace(max_tokens=2), PARAMS[1].replace(max_tokens=2, n=1)]
    found = []
    plan = {"step_interval": 1, "num_redundant_experts": 2, "use_async": False}
    ranks = {"tensor_parallel_size": 2, "enable_expert_parallel": True, "enable_eplb": True, "eplb_config": plan}
    for options in ({"backend": "reference"}, ranks):
        with engine(folder, **options) as llm:
            found.append([one.outputs[0].token_ids for one in llm.generate([[3, 4, 5], [7]], params, use_tqdm=False)])
    assert found[0] == found[1]
    assert any("balancedness" in text and " 0 moved" not in text for text in caplog.messages), caplog.messages
