"""Draws from parts of the vocabulary are those from the whole, and exchange little where they look at few tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from octavo.distributed.collectives import Collectives
from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.reference.logprobs import top_logprobs
from octavo.kernels.reference.sampling import sample
from octavo.kernels.vocabulary_parts import VocabularyPart
from octavo.messages import NewRow
from octavo.sampling.columns import SamplingBatch
from octavo.sampling.sampler import Sampler
from octavo.sampling_params import SamplingParams
from tests.distributed.threaded_ranks import on_all_ranks

ROWS, VOCAB, RANKS = 6, 901, 3


class Part:
    """The logits of some tokens, drawn from by the reference."""

    def __init__(self, logits: FloatArray) -> None:
        self._logits = logits

    def logits(self, rows: IntArray) -> FloatArray:
        return self._logits[rows]

    sample = staticmethod(sample)
    top_logprobs = staticmethod(top_logprobs)


def batch(*params: SamplingParams) -> SamplingBatch:
    sampler = Sampler(len(params))
    for row, each in enumerate(params):
        sampler.enter(NewRow(row, [3, 3, 3, 3], 3, each, each.seed or 0, 0))
    rows = np.arange(len(params), dtype=np.int32)
    tokens = np.full((len(params), 8), 3, np.int32)
    return sampler.prepare(rows, rows[::-1].copy(), np.full(len(params), 4, np.int32), tokens)


def draws(logits: FloatArray, sampling: SamplingBatch) -> tuple[IntArray, int]:
    """Of all ranks, which must be the same, and how many numbers of logits one of them sent."""

    def run(ranks: Collectives) -> tuple[bytes, int]:
        sent = []
        gather: Callable[[Any], Any] = ranks.gather_arrays
        ranks.gather_arrays = lambda x: (sent.append(x.size), gather(x))[1]  # type: ignore[method-assign]
        starts = [rank * VOCAB // RANKS for rank in range(RANKS + 1)]
        own = np.ascontiguousarray(logits[:, starts[ranks.rank] : starts[ranks.rank + 1]])
        part: Any = VocabularyPart(Part(own), VOCAB, ranks)  # type: ignore[arg-type]
        drawn = part.sample(part.logits(np.arange(len(logits), dtype=np.int32)), sampling)
        return drawn.tobytes(), sum(sent)

    (found, *others) = on_all_ranks(RANKS, run)
    assert all(other == found for other in others)
    return np.frombuffer(found[0], np.int32), found[1]


GREEDY, FEW = SamplingParams(temperature=0.0), SamplingParams(temperature=0.9, top_k=5, top_p=0.8, seed=3)


@pytest.mark.parametrize(
    ("params", "is_small"),
    [
        ([GREEDY], True),
        ([GREEDY, FEW, FEW.replace(top_k=1, seed=4), FEW.replace(min_p=0.2)], True),
        ([FEW.replace(top_k=64)], True),
        ([FEW.replace(top_k=65)], False),
        ([GREEDY, SamplingParams(temperature=1.0, seed=1)], False),
        ([GREEDY.replace(logit_bias={7: 100.0})], False),
        ([FEW.replace(presence_penalty=0.5)], False),
    ],
)
def test_draws_are_those_from_whole_logits(params: list[SamplingParams], is_small: bool) -> None:
    logits = np.random.default_rng(0).standard_normal((ROWS, VOCAB), np.float32) * 3
    sampling = batch(*(params * ROWS)[:ROWS])
    drawn, num_sent = draws(logits, sampling)
    assert np.array_equal(drawn, sample(logits, sampling))
    assert (num_sent < ROWS * 131) == is_small


def test_equal_tokens_broken_rows_and_forbidden_ones() -> None:
    """Equals of the last token that top_k keeps are kept, wherever they are; a NaN anywhere draws nothing."""
    logits = np.full((ROWS, VOCAB), -1.0, np.float32)
    logits[0, [20, 150, 299]] = 2.0
    logits[1, 299] = np.nan
    logits[2] = -np.inf
    logits[3, 0] = np.inf
    logits[4] = np.round(np.random.default_rng(1).standard_normal(VOCAB))
    for params in (GREEDY, FEW, FEW.replace(top_k=2, top_p=1.0), FEW.replace(top_k=1)):
        sampling = batch(*[params] * ROWS)
        drawn, _ = draws(logits, sampling)
        assert np.array_equal(drawn, sample(logits, sampling))
        assert (drawn == -1).sum() == 2
