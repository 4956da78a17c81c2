"""A model on several ranks gives one rank's tokens: every family, on the host's backends, for every kind of request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, LoRARequest, SamplingParams
from octavo.errors import ConfigError
from octavo.models.splits import own_experts
from octavo.observe.events import EngineStarted, Preempted
from tests.distributed.conftest import ModelFor, engine
from tests.engine.test_overlap import PROMPTS, params
from tests.lora.written_adapters import LINEARS, write_adapter

#: every family, and each of its features that ranks share in a way of its own
FAMILIES = (
    *("llama", "llama-tied-bias", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"),
    *("gpt2", "opt", "opt-normed-after", "opt-galactica"),
    *("qwen2-moe", "granite-moe", "gpt-oss", "olmoe", "olmo2"),
)
#: those that 3 ranks, which divide unevenly, and 4, of which two hold each KV head, share differently from each other
UNEVEN = ("llama", "phi3", "gemma3", "gpt2", "opt-normed-after", "qwen2-moe", "gpt-oss", "olmoe")
LAYOUTS = [(name, 2) for name in FAMILIES] + [(name, num_ranks) for name in UNEVEN for num_ranks in (3, 4)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, detokenize=False)


def tokens(llm: LLM) -> list[list[list[int]]]:
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    return [[one.token_ids for one in output.outputs] for output in outputs]


@pytest.mark.parametrize(("name", "num_ranks"), LAYOUTS)
def test_every_family_gives_one_ranks_tokens(name: str, num_ranks: int, model_for: ModelFor) -> None:
    folder = model_for(name, num_ranks)
    with engine(folder, 1) as one:
        expected = tokens(one)
    with engine(folder, num_ranks, max_num_batched_tokens=40) as several:
        assert tokens(several) == expected
        assert several.stats().num_used_blocks == 0


@pytest.mark.parametrize(
    ("name", "num_ranks", "backend", "first"),
    [
        ("qwen3-moe", 2, "cpu", "0..2 of 6"),
        ("mixtral", 3, "cpu", "0..0 of 5"),
        ("gpt-oss", 3, "reference", "0..0 of 5"),
        ("glm4-moe", 3, "cpu", "0..1 of 8"),
        ("deepseek-v3", 2, "cpu", "0..3 of 8"),
    ],
)
def test_whole_experts_on_each_rank_give_one_ranks_tokens(
    name: str, num_ranks: int, backend: str, first: str, model_for: ModelFor
) -> None:
    """Also where they do not divide, have biases or a shared expert, and where no row of a step is a rank's."""
    folder = model_for(name, num_ranks)
    options = {"enable_expert_parallel": True, "backend": backend, "max_num_batched_tokens": 40}
    with engine(folder, 1) as one, engine(folder, num_ranks, **options) as several:
        assert tokens(several) == tokens(one)
        assert dict(several.card)["experts"] == f"{first} on the first rank, each whole"


def test_experts_that_ranks_cannot_divide_are_told(model_for: ModelFor) -> None:
    with pytest.raises(ConfigError, match="enable_expert_parallel is True, but this llama model has no experts"):
        engine(model_for("llama", 2), 2, enable_expert_parallel=True)
    with pytest.raises(ConfigError, match=r"tensor_parallel_size is 6, .* 5 experts, .*: allowed are up to 5 ranks"):
        own_experts(5, 0, 6)


@pytest.mark.parametrize(("num_ranks", "num_stages"), [(3, 1), (1, 2)])
def test_latents_are_on_every_rank(num_ranks: int, num_stages: int, model_for: ModelFor) -> None:
    folder = model_for("deepseek-v3", 2)
    with engine(folder, 1) as one, engine(folder, num_ranks, num_stages, max_num_batched_tokens=40) as several:
        assert tokens(several) == tokens(one)
        starts = [event for llm in (one, several) for event in llm.events if isinstance(event, EngineStarted)]
        assert starts[1].block_bytes == starts[0].block_bytes // num_stages, "whole latents, of the stage's layers"


@pytest.mark.parametrize(("name", "num_ranks", "sizes"), [("llama", 4, "1, 2, 6"), ("gpt2", 3, "1, 2, 4")])
def test_a_layout_that_does_not_work_names_those_that_do(
    name: str, num_ranks: int, sizes: str, model_for: ModelFor
) -> None:
    with pytest.raises(ConfigError, match=rf"tensor_parallel_size is {num_ranks}, .*: allowed are {sizes}$"):
        engine(model_for(name, 2), num_ranks)


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_ranks_share_an_adapter_as_they_share_the_matrices(name: str, model_for: ModelFor, tmp_path: Path) -> None:
    """Of every product, the embedding and the head; beside requests without one."""
    folder = model_for(name, 2)
    targets = ("qkv_proj", "gate_up_proj", *LINEARS, "embed_tokens", "lm_head")
    adapter = LoRARequest("all", 1, str(write_adapter(tmp_path / "all", folder, targets, rank=3)))
    asked = [adapter if place % 2 else None for place in range(len(PROMPTS))]
    found = []
    for num_ranks in (1, 2):
        with engine(folder, num_ranks, enable_lora=True) as llm:
            outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False, lora_request=asked)
            found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1]


def answers(llm: LLM) -> list[Any]:
    """Samples, stops, penalties, log-probabilities, prompts' too, and beams."""
    beams = SamplingParams(use_beam_search=True, n=2, max_tokens=6, logprobs=1, detokenize=False)
    outputs = llm.generate(PROMPTS * 2, [*map(params, range(11)), beams], use_tqdm=False)
    found = []
    for output in outputs:
        rows = [row for one in output.outputs for row in one.logprobs or ()] + (output.prompt_logprobs or [None])[1:]
        logprobs = [(token, entry.logprob, entry.rank) for row in rows for token, entry in row.items()]
        chosen = [(one.token_ids, one.finish_reason, one.stop_reason) for one in output.outputs]
        found.append((chosen, [(token, rank) for token, _, rank in logprobs], [value for _, value, _ in logprobs]))
    return found


def check(got: list[Any], expected: list[Any]) -> None:
    for (tokens, ranks, values), (own_tokens, own_ranks, own_values) in zip(got, expected, strict=True):
        assert (tokens, ranks) == (own_tokens, own_ranks)
        assert values == pytest.approx(own_values, abs=1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_any_request_gets_one_ranks_answer(name: str, model_for: ModelFor) -> None:
    """Also from the prefix tree, and where blocks are so few that requests are preempted."""
    folder = model_for(name, 2)
    with engine(folder, 1) as one:
        expected = answers(one)
        start = next(event for event in one.events if isinstance(event, EngineStarted))
    tight = -(-96 // start.block_size) * start.num_groups + 1
    for options in ({}, {"num_gpu_blocks_override": tight, "schedule_conservativeness": 0}):
        with engine(folder, 2, **options) as two:
            check(answers(two), expected)
            for _ in two.stream(PROMPTS, GREEDY):  # left early: aborted
                break
            check(answers(two), expected)
            assert two.stats().num_used_blocks == 0
            assert any(isinstance(event, Preempted) for event in two.events) == bool(options)


def test_the_reference_backend_shares_a_model_too(model_for: ModelFor) -> None:
    folder = model_for("qwen3", 2)
    with engine(folder, 1) as one:
        expected = tokens(one)
    with engine(folder, 2, backend="reference") as two:
        assert tokens(two) == expected
