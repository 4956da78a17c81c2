"""Draws and logprobs against the executable specification, token for token.

A draw may differ where u falls within rounding of a boundary between tokens; seeds here are fixed, and a
difference is allowed only where the specification itself changes within that distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.gpu.device import DEVICE, ON_GPU

from octavo.sampling.columns import COLUMNS, NUMBERS, RAGGED, SamplingBatch  # isort: skip
from octavo.sampling_params import SamplingParams  # isort: skip
from octavo.kernels.reference.logprobs import top_logprobs as reference_logprobs  # isort: skip
from octavo.kernels.reference.random import uniform  # isort: skip
from octavo.kernels.reference.sampling import (  # isort: skip
    processed_logits as reference_processed,
    sample as reference_sample,
    token_weights,
)
from octavo.kernels.triton.sampling.logits_scan import LogitsScan  # isort: skip
from octavo.kernels.triton.sampling.logprobs import top_logprobs  # isort: skip
from octavo.kernels.triton.sampling.logprobs import processed_logits  # isort: skip
from octavo.kernels.triton.sampling.draw import sample  # isort: skip
from octavo.kernels.triton.sampling.edited_rows import SamplingWorkspace  # isort: skip
from octavo.kernels.triton.sampling.entries import DeviceSamplingBatch  # isort: skip
from octavo.kernels.triton.sampling.masked_rows import mask_rows  # isort: skip

VOCAB = 151936 if ON_GPU else 9000
NUM = 64 if ON_GPU else 4


def make_batch(num: int = NUM, **columns: Any) -> SamplingBatch:
    """Entries that differ only in seed, position and the given columns: one value for all, or one each."""
    rng = np.random.default_rng(num)
    made: dict[str, object] = {
        "logits_rows": np.arange(num, dtype=np.int32),
        "positions": rng.integers(0, 1 << 30, num).astype(np.int32),
        "seeds": rng.integers(0, 1 << 64, num, dtype=np.uint64),
    }
    for name, dtype in NUMBERS.items():
        if name not in made:
            value = columns.pop(name, getattr(SamplingParams(), name, 0))
            made[name] = np.broadcast_to(np.asarray(value, dtype), num).copy()
    for name, offsets in RAGGED.items():
        lists = columns.pop(name, [[]] * num)
        made[name] = np.concatenate([np.asarray(run, COLUMNS[name]) for run in lists])
        made[offsets] = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    assert not columns, f"no such columns: {columns}"
    return SamplingBatch(**made)  # type: ignore[arg-type]


def to_device(batch: SamplingBatch) -> DeviceSamplingBatch:
    return DeviceSamplingBatch.of(
        batch,
        lambda arrays: [torch.as_tensor(one if len(one) else np.zeros(1, one.dtype), device=DEVICE) for one in arrays],
    )


def draw(logits: torch.Tensor, batch: SamplingBatch) -> NDArray[np.int32]:
    num = len(batch.positions)
    workspace = SamplingWorkspace.allocate(num, logits.shape[1], DEVICE, edits=True)
    workspace.edited.fill_(torch.nan)
    tokens = torch.full((num,), -7, dtype=torch.int32, device=DEVICE)
    for _ in range(2):
        sample(logits, to_device(batch), tokens, workspace, has_edits=True, has_filters=True, chained=ON_GPU)
    assert not workspace.counts.any(), "the counts are zero again"
    return tokens.cpu().numpy()


def check(logits: torch.Tensor, batch: SamplingBatch) -> NDArray[np.int32]:
    tokens = draw(logits, batch)
    check_tokens(tokens, logits, batch)
    return tokens


def check_tokens(tokens: NDArray[np.int32], logits: torch.Tensor, batch: SamplingBatch) -> None:
    rows = logits.float().cpu().numpy()
    expected = reference_sample(rows, batch)
    draws = uniform(batch.seeds, batch.sample_indices, batch.positions)
    for i in np.flatnonzero(tokens != expected):
        assert expected[i] >= 0
        assert batch.temperature[i] > 0, f"entry {i}: {tokens[i]} for the best token {expected[i]}"
        cumulative = np.cumsum(token_weights(rows, batch, int(i)))
        at = cumulative[[tokens[i] - 1, tokens[i]]] / cumulative[-1]
        assert at[0] - 1e-5 < draws[i] < at[1] + 1e-5, f"entry {i}: {tokens[i]} for {expected[i]}"
    assert np.mean(tokens == expected) > 0.9


def peaked(num: int = NUM, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Like a language model's logits: a few tokens have most of the mass."""
    torch.manual_seed(1)
    logits = torch.randn(num, VOCAB, device=DEVICE) * 2
    logits.scatter_add_(1, torch.randint(VOCAB, (num, 30), device=DEVICE), torch.rand(num, 30, device=DEVICE) * 16)
    return logits.to(dtype)


def flat(num: int = NUM, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(num, VOCAB, device=DEVICE).to(dtype)


DTYPES = [torch.float32, torch.bfloat16, torch.float16] if ON_GPU else [torch.float32]


FILTERS: list[dict[str, float]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"top_k": 20, "top_p": 0.95, "temperature": 0.6},
    {"top_k": 1},
    {"top_k": 5000},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"min_p": 0.05, "temperature": 1.5},
    {"min_p": 0.001, "top_p": 0.8, "top_k": 3000},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [peaked, flat])
@pytest.mark.parametrize("filters", FILTERS if ON_GPU else FILTERS[2:4], ids=str)
def test_filters(dtype: torch.dtype, make: object, filters: dict[str, float]) -> None:
    check(make(dtype=dtype), make_batch(**filters))  # type: ignore[operator]


def test_every_entry_its_own_way() -> None:
    rng = np.random.default_rng(5)
    check(
        peaked(),
        make_batch(
            temperature=rng.choice([0.0, 0.5, 1.0, 1.7], NUM), top_k=rng.choice([0, 1, 40, 200], NUM),
            top_p=rng.choice([0.5, 0.99, 1.0], NUM), min_p=rng.choice([0.0, 0.1], NUM),
            sample_indices=rng.integers(0, 9, NUM),
        ),
    )  # fmt: skip


def random_mask(rng: np.random.Generator) -> NDArray[np.int32]:
    words = -(-VOCAB // 32)
    return rng.integers(-(2**31), 2**31, words).astype(np.int32) * rng.choice([0, 1, 1], words).astype(np.int32)


def edited_batch(**columns: object) -> SamplingBatch:
    rng = np.random.default_rng(6)

    def lists(most: int) -> list[NDArray[np.int64]]:
        return [rng.choice(VOCAB, rng.integers(0, most + 1), replace=False) for _ in range(NUM)]

    history = [rng.integers(0, 300, rng.integers(0, 3000)) for _ in range(NUM)]
    bias = lists(50)
    return make_batch(
        temperature=rng.choice([0.0, 1.0], NUM), history=history, prompt_lens=[len(h) // 2 for h in history],
        repetition_penalty=rng.uniform(0.8, 1.5, NUM), presence_penalty=rng.uniform(-1, 1, NUM),
        frequency_penalty=rng.uniform(-0.1, 0.1, NUM), banned=lists(100), bias_ids=bias,
        bias_values=[rng.uniform(-20, 20, len(ids)) for ids in bias],
        allowed=[a if i % 2 else [] for i, a in enumerate(lists(1000))],
        mask=[random_mask(rng) if i % 4 < 2 else [] for i in range(NUM)],
        **{"top_k": rng.choice([0, 50], NUM), **columns},
    )  # fmt: skip


def test_edits() -> None:
    check(peaked(), edited_batch())


def test_masks() -> None:
    """Alone, with a NaN in the row, with one token left, and with none."""
    rng = np.random.default_rng(3)
    one, none = np.zeros((2, -(-VOCAB // 32)), np.int32)
    one[4000 // 32] = 1 << 4000 % 32
    logits = peaked(4)
    logits[1, 77] = torch.nan
    tokens = check(logits, make_batch(4, mask=[random_mask(rng), none, one, none], temperature=[1.0, 1.0, 1.0, 0.0]))
    assert tokens.tolist()[1:] == [-1, 4000, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_in_place(dtype: torch.dtype) -> None:
    """Of the second and the last row, with padding between them; open words, and a NaN where nothing may come."""
    rng, logits = np.random.default_rng(4), peaked(3).to(dtype)
    logits[1, 77] = torch.nan
    masks = np.stack([random_mask(rng), np.zeros_like(random_mask(rng)), random_mask(rng)])
    masks[0, 2] = 0  # of token 77
    masks[0, 40:] = -1
    rows = torch.tensor([1, -1, 2], dtype=torch.int32, device=DEVICE)
    expected = logits.clone()
    for row, mask in ((1, masks[0]), (2, masks[2])):
        bits = np.unpackbits(mask.view(np.uint8), count=VOCAB, bitorder="little")
        is_closed = torch.from_numpy(bits == 0).to(DEVICE)
        expected[row] = torch.where(is_closed & ~logits[row].isnan(), -torch.inf, logits[row])
    mask_rows(logits, rows, torch.from_numpy(masks).to(DEVICE))
    assert torch.equal(logits.nan_to_num(123.0), expected.nan_to_num(123.0))
    assert logits[1, 77].isnan()


def test_rows_that_cannot_be_drawn_from_fail_alone() -> None:
    logits = peaked(5)
    logits[0, 77] = torch.nan
    logits[1] = -torch.inf
    logits[2, [5, 8000]] = torch.inf
    logits[3, 100:] = -torch.inf
    tokens = check(logits, make_batch(5, temperature=[1.0, 0.0, 1.0, 1.0, 1.0], top_p=[1, 1, 1, 0.9, 1]))
    assert list(tokens[:2]) == [-1, -1]
    assert tokens[2] in (5, 8000)


def test_ties_keep_the_lower_ids() -> None:
    logits = torch.full((NUM, VOCAB), -50.0, device=DEVICE)
    logits[:, 200:220] = 3.0
    tokens = check(logits, make_batch(top_p=0.5))
    assert set(tokens) <= set(range(200, 210))
    assert set(check(logits, make_batch(temperature=0.0))) == {200}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, 1, 20])
def test_logprobs(dtype: torch.dtype, k: int) -> None:
    logits = peaked(dtype=dtype)
    tokens = np.concatenate([np.random.default_rng(3).integers(0, VOCAB, NUM - 1), [0]]).astype(np.int32)
    tokens[0] = int(logits[0].argmax())
    expected_ids, expected_logprobs, expected_ranks = reference_logprobs(logits.float().cpu().numpy(), tokens, k)
    ids = torch.full((NUM, k + 1), -7, dtype=torch.int32, device=DEVICE)
    logprobs = torch.full((NUM, k + 1), torch.nan, device=DEVICE)
    ranks = torch.zeros(NUM, dtype=torch.int32, device=DEVICE)
    scan = LogitsScan.allocate(NUM, VOCAB, DEVICE)
    top_logprobs(logits, torch.as_tensor(tokens, device=DEVICE), ids, logprobs, ranks, scan)
    assert np.array_equal(ids.cpu().numpy(), expected_ids)
    assert np.array_equal(ranks.cpu().numpy(), expected_ranks)
    assert np.allclose(logprobs.cpu().numpy(), expected_logprobs, atol=2e-5)


PROCESSED = {
    "plain": lambda rng: make_batch(temperature=0.7),
    "filters": lambda rng: make_batch(
        temperature=rng.choice([0.0, 0.6, 1.0], NUM), top_p=[0.9, 1.0, 0.5, 0.9] * (NUM // 4),
        top_k=[0, 40, 200, 0] * (NUM // 4), min_p=[0.0, 0.0, 0.01, 0.1] * (NUM // 4),
    ),
    "edits": lambda rng: edited_batch(top_p=rng.choice([0.8, 1.0], NUM)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", list(PROCESSED))
def test_processed_logits(which: str, dtype: torch.dtype) -> None:
    """Tokens within rounding of top_p's boundary may be on either side of it."""
    logits, batch = peaked(dtype=dtype), PROCESSED[which](np.random.default_rng(8))
    expected = reference_processed(logits.float().cpu().numpy(), batch)
    ours = processed(logits, batch, draw(logits, batch))
    differ = np.isinf(ours) != np.isinf(expected)
    assert differ.sum(axis=1).max() <= 1
    assert differ.sum() <= NUM // 8
    np.testing.assert_allclose(ours[~differ], expected[~differ], rtol=1e-6)


def test_what_was_drawn_is_kept() -> None:
    """The drawn token is kept even if sums here put it past top_p's boundary; token 500 is far past it."""
    logits = flat()
    batch = make_batch(top_p=1e-6)
    drawn = np.array([500] + [-1] * (NUM - 1), np.int32)
    kept = np.isfinite(processed(logits, batch, drawn))
    assert kept.sum(axis=1).tolist() == [2] + [1] * (NUM - 1)
    assert kept[0, 500]


def processed(logits: torch.Tensor, batch: SamplingBatch, drawn: NDArray[np.int32]) -> NDArray[np.float32]:
    """The logits that `drawn` were drawn from."""
    num = len(batch.positions)
    workspace = SamplingWorkspace.allocate(num, logits.shape[1], DEVICE, edits=True)
    workspace.edited.fill_(torch.nan)
    out = torch.full((num, logits.shape[1]), torch.nan, device=DEVICE)
    tokens = torch.as_tensor(drawn, device=DEVICE)
    processed_logits(logits, to_device(batch), tokens, out, workspace, chained=ON_GPU)
    assert not workspace.counts.any(), "the counts are zero again"
    return out.cpu().numpy()


def test_logits_in_place_of_log_probabilities() -> None:
    """Also for tokens that cannot be drawn: a logit of -inf is ordered like a finite one."""
    logits = peaked()
    logits[1, 3:] = -torch.inf
    tokens = np.full(NUM, 7, np.int32)
    ids = torch.full((NUM, 6), -7, dtype=torch.int32, device=DEVICE)
    values = torch.full((NUM, 6), torch.nan, device=DEVICE)
    ranks = torch.zeros(NUM, dtype=torch.int32, device=DEVICE)
    scan = LogitsScan.allocate(NUM, VOCAB, DEVICE)
    top_logprobs(logits, torch.as_tensor(tokens, device=DEVICE), ids, values, ranks, scan, as_logits=True)
    expected = reference_logprobs(logits.cpu().numpy(), tokens, 5, as_logits=True)
    for got, wanted in zip((ids, values, ranks), expected, strict=True):
        assert np.array_equal(got.cpu().numpy(), wanted)
