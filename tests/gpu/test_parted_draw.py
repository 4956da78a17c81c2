"""Ranks that each see a part of the vocabulary draw what one that sees all of it draws, and all the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.gpu.device import DEVICE, ON_GPU
from tests.gpu.test_sampling import NUM, VOCAB, check_tokens, make_batch, peaked, to_device

from octavo.kernels.triton.sampling.edited_rows import SamplingWorkspace  # isort: skip
from octavo.kernels.triton.sampling.parted_draw import PartedDraw  # isort: skip
from octavo.kernels.triton.sampling.parted_top_k import PartedTopK  # isort: skip
from octavo.kernels.reference.sampling import sample as reference_sample  # isort: skip
from octavo.sampling.columns import SamplingBatch  # isort: skip


def made(rank: int, num_ranks: int, num: int, add_up: Callable[[torch.Tensor], None]) -> PartedDraw:
    workspace = SamplingWorkspace.allocate(num, VOCAB, DEVICE, edits=False)
    return PartedDraw(rank, num_ranks, VOCAB, num, DEVICE, add_up, workspace, chained=ON_GPU)


def draw(logits: torch.Tensor, batch: SamplingBatch, num_ranks: int) -> NDArray[np.int32]:
    """Each rank's kernels, one rank after another."""
    num = len(batch.positions)
    starts = [rank * VOCAB // num_ranks for rank in range(num_ranks + 1)]
    ranks = [made(rank, num_ranks, num, lambda x: None) for rank in range(num_ranks)]
    parts = [logits[:, start:end].contiguous() for start, end in pairwise(starts)]
    given = [(part, to_device(batch), num) for part in parts]
    told = [rank.offer(*each) for rank, each in zip(ranks, given, strict=True)]
    together = torch.stack([offers for offers, _ in told]).sum(0)
    for rank, each, (offers, _) in zip(ranks, given, told, strict=True):
        offers.copy_(together)
        rank.choose(*each)
    found = torch.stack([shares for _, shares in told]).sum(0)
    return found[:num].to(torch.int32).cpu().numpy()


def draw_kept(logits: torch.Tensor, batch: SamplingBatch, num_ranks: int) -> NDArray[np.int32]:
    """The same of draws with a top_k. What ranks have told before, in other draws, is still there."""
    num = len(batch.positions)
    starts = [rank * VOCAB // num_ranks for rank in range(num_ranks + 1)]
    given = (VOCAB, num, DEVICE, lambda x: None)
    room = [SamplingWorkspace.allocate(num, VOCAB, DEVICE, edits=False) for _ in range(num_ranks)]
    ranks = [PartedTopK(rank, num_ranks, *given, room[rank], chained=ON_GPU) for rank in range(num_ranks)]
    for rank in ranks:
        for tensor in rank.tensors:
            tensor.fill_(7.0)
    on_device = to_device(batch)
    parts = [logits[:, start:end].contiguous() for start, end in pairwise(starts)]
    turns = [rank.turns(part, on_device, num) for rank, part in zip(ranks, parts, strict=True)]
    for told in zip(*turns, strict=True):
        together = torch.stack(told).sum(0)
        for each in told:
            each.copy_(together)
    return together[:num].to(torch.int32).cpu().numpy()


FILTERED = [
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 64, "temperature": 0.6},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 40, "min_p": 0.2},
    {"top_k": 30, "top_p": 0.95, "min_p": 1e-4, "temperature": 1.4},
    {"top_k": [40, 0, 5, 0] * (NUM // 4), "temperature": [1.0, 1.0, 0.0, 0.0] * (NUM // 4)},
]


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("columns", FILTERED if ON_GPU else FILTERED[-2:], ids=str)
def test_a_top_k_keeps_the_best_of_all_parts(columns: dict[str, Any], num_ranks: int) -> None:
    logits, batch = peaked(), make_batch(NUM, **{"temperature": 1.0} | columns)
    check_tokens(draw_kept(logits, batch, num_ranks), logits, batch)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_a_top_k_keeps_all_equals_of_the_last(top_p: float) -> None:
    """Also where a part has more of them than it tells, and behind the cut between the parts."""
    logits = torch.full((NUM, VOCAB), -3.0, device=DEVICE)
    logits[:, ::7] = 1.0
    logits[1:, [5, VOCAB - 9]] = 2.0
    logits[2, : VOCAB // 2] = -torch.inf
    logits[3, 11 : VOCAB - 30] = -torch.inf
    for top_k in (3, 64):
        batch = make_batch(NUM, temperature=0.9, top_k=top_k, top_p=top_p)
        check_tokens(draw_kept(logits, batch, 2), logits, batch)


def test_a_top_k_of_broken_rows() -> None:
    logits = np.full((4, VOCAB), -1.0, np.float32)
    logits[0, VOCAB - 1] = np.nan
    logits[1] = -np.inf
    logits[2, 7] = np.inf
    logits[3, : VOCAB - 2] = -np.inf  # fewer than top_k can be drawn
    batch = make_batch(4, temperature=0.8, top_k=5)
    drawn = draw_kept(torch.from_numpy(logits).to(DEVICE), batch, 2)
    assert list(drawn[:3]) == [-1, -1, 7]
    assert drawn[3] >= VOCAB - 2


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_draws_are_those_from_the_whole(temperature: float, num_ranks: int) -> None:
    logits, batch = peaked(), make_batch(NUM, temperature=temperature)
    check_tokens(draw(logits, batch, num_ranks), logits, batch)


def test_equals_infinities_and_broken_rows() -> None:
    logits = np.full((5, VOCAB), -1.0, np.float32)
    logits[0, [VOCAB // 2 - 1, VOCAB // 2, VOCAB - 1]] = 2.0  # the first of equals, on either side of the cut
    logits[1, VOCAB - 1] = np.nan
    logits[2] = -np.inf
    logits[3, : VOCAB - 2] = -np.inf  # a rank has none that can be drawn
    logits[4, VOCAB - 3] = np.inf
    for temperature in (0.0, 0.8):
        batch = make_batch(5, temperature=temperature)
        drawn = draw(torch.from_numpy(logits).to(DEVICE), batch, 2)
        sure = slice(0 if temperature == 0.0 else 1, None)  # a row of equals has a boundary near every u
        assert np.array_equal(drawn[sure], reference_sample(logits, batch)[sure])
        assert list(drawn[1:3]) == [-1, -1]


def test_the_ranks_call_for_two_sums() -> None:
    """`sample` is `offer`, a sum, `choose`, a sum; alone, a rank draws from its part."""
    sums: list[tuple[int, ...]] = []
    logits = torch.zeros(NUM, VOCAB // 2, device=DEVICE)
    logits[:, 11] = 9.0
    tokens = torch.full((NUM,), -7, dtype=torch.int32, device=DEVICE)
    one = made(0, 2, NUM, lambda x: sums.append(tuple(x.shape)))
    one.sample(logits, to_device(make_batch(NUM, temperature=0.0)), tokens)
    assert tokens.tolist() == [11] * NUM
    assert sums == [(NUM, 8), (-(-NUM // 4) * 4,)]
