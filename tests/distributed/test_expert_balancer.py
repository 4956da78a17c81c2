"""Experts change places between ranks while sequences run, and the tokens stay those of one rank."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.distributed.collectives import Collectives
from octavo.distributed.placed_experts import PlacedExperts
from octavo.errors import ConfigError, UnsupportedModelError
from octavo.kernels.ledger import Contents, Entry
from octavo.kernels.mixture import Mixture
from octavo.models.splits import expert_slots
from tests.distributed.conftest import ModelFor, engine
from tests.distributed.threaded_ranks import on_all_ranks
from tests.engine.test_overlap import PROMPTS

LONG = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, detokenize=False)
SOON = {"window_size": 4, "step_interval": 5}


def tokens(llm: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, LONG, use_tqdm=False)]


def balanced(
    folder: Path, num_ranks: int, num_stages: int = 1, *, eplb: dict[str, Any] | None = None, **options: Any
) -> LLM:
    options = {"enable_expert_parallel": True, "enable_eplb": True, "eplb_config": SOON | (eplb or {})} | options
    return engine(folder, num_ranks, num_stages, max_num_batched_tokens=40, **options)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "octavo")
    return caplog


@pytest.mark.parametrize(
    ("name", "num_ranks", "eplb", "options"),
    [
        ("qwen3-moe", 2, {"log_balancedness": True, "log_balancedness_interval": 6}, {}),
        ("qwen3-moe", 3, {"num_redundant_experts": 3, "window_size": 11}, {}),
        ("deepseek-v3", 2, {"num_redundant_experts": 4, "use_async": False}, {"backend": "reference"}),
        ("gpt-oss", 2, {"num_redundant_experts": 1}, {}),
    ],
)
def test_tokens_are_one_ranks_before_across_and_after_a_change(
    name: str,
    num_ranks: int,
    eplb: dict[str, Any],
    options: dict[str, Any],
    model_for: ModelFor,
    told: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And moves take the memory that was planned for them."""
    folder, planned, held = model_for(name, num_ranks), list[int](), list[int]()
    join, entries = PlacedExperts.join, Contents.moving_entries

    def joined(placed: PlacedExperts, *given: Any) -> None:
        join(placed, *given)
        held.append(placed.num_bytes)

    def entered(contents: Contents, expert_bytes: Callable[[Mixture], int]) -> list[Entry]:
        found = entries(contents, expert_bytes)
        planned.extend(entry.num_bytes for entry in found)
        return found

    monkeypatch.setattr(PlacedExperts, "join", joined)
    monkeypatch.setattr(Contents, "moving_entries", entered)
    with engine(folder, 1) as one, balanced(folder, num_ranks, eplb=eplb, **options) as several:
        expected = tokens(one)
        assert tokens(several) == tokens(several) == expected
        assert "balanced every 5 steps" in dict(several.card)["experts"]
    check_turns(told)
    assert {*planned} == {*held}
    assert any("experts at step 6: " in text for text in told.messages) == ("log_balancedness" in eplb)


def test_quantised_experts_change_places_too(model_for: ModelFor, told: pytest.LogCaptureFixture) -> None:
    """With tokens of ranks whose experts stay: these quantise their parts of the other matrices alike."""
    options: dict[str, Any] = {"quantization": "int8", "activation_dtype": "int16"}
    folder = model_for("qwen3-moe", 2)
    stays = {"enable_expert_parallel": True, "max_num_batched_tokens": 40} | options
    with engine(folder, 2, **stays) as stay, balanced(folder, 2, **options) as change:
        assert tokens(change) == tokens(change) == tokens(stay)
    check_turns(told)


def check_turns(told: pytest.LogCaptureFixture) -> None:
    turns = [re.findall(r"balancedness ([\d.]+) before, ([\d.]+) after; (\d+) moved", text) for text in told.messages]
    changes = [tuple(map(float, turn[0])) for turn in turns if turn]
    assert len(changes) >= 2, "each stands for one choice"
    assert any(moved for _, _, moved in changes)
    assert all(after >= before for before, after, _ in changes)


def test_what_cannot_be_balanced_says_what_to_set(model_for: ModelFor) -> None:
    folder = model_for("qwen3-moe", 2)
    with pytest.raises(ConfigError, match=r"num_redundant_experts .* is 1, .* allowed are 0 to 6 in steps of 2"):
        balanced(folder, 2, eplb={"num_redundant_experts": 1})
    with pytest.raises(ConfigError, match="tensor_parallel_size is 1: set it to 2 or more"):
        balanced(folder, 1)
    with pytest.raises(ConfigError, match="are 1 to 10 in steps of 3"):
        expert_slots(5, 0, 3)


def test_experts_of_other_sizes_cannot_change_places() -> None:
    def join(ranks: Collectives) -> None:
        placed = PlacedExperts(["layer 3"], 4, 4, 1, "cpu")
        placed.hold_arrays("layer 3", [[np.zeros(8 + 8 * ranks.rank, np.uint8)] for _ in range(2)])
        placed.join(ranks)

    with pytest.raises(UnsupportedModelError, match=r"experts of layer 3 take 8 to 16 bytes"):
        on_all_ranks(2, join)


def test_experts_packed_for_other_processors_cannot_change_places() -> None:
    def join(ranks: Collectives) -> None:
        placed = PlacedExperts(["layer 3"], 2, 2, 1, "cpu")
        placed.hold_arrays("layer 3", [[np.zeros(8, np.uint8)]])
        placed.join(ranks, ("avx2", "avx512")[ranks.rank])

    with pytest.raises(UnsupportedModelError, match="set OCTAVO_CPU_ISA to what all have"):
        on_all_ranks(2, join)


def test_every_expert_arrives_whole() -> None:
    """Rounds of one expert a rank, one of them parked: each slot then has the bytes of the expert it should have."""

    def move(ranks: Collectives) -> list[list[int]]:
        placed = PlacedExperts(["a layer"], 6, 6, 1, "cpu")
        held = [
            [np.full(3, slot, np.uint8), np.full(5, slot, np.uint8)] for slot in (2 * ranks.rank, 2 * ranks.rank + 1)
        ]
        placed.hold_arrays("a layer", held)
        placed.join(ranks)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(placed, "_most", 1)
            assert placed.move(0, [3, 4, 5, 2, 0, 1]) == 6
        assert placed.places[0, :, 1].tolist() == [4, 5, 3, 0, 1, 2]
        return [[*first.tolist(), *rest.tolist()] for first, rest in held]

    whole = [slot for rank in on_all_ranks(3, move) for slot in rank]
    assert whole == [[expert] * 8 for expert in (3, 4, 5, 2, 0, 1)]
