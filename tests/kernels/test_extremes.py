"""For any parameters of a request, each draw is a token of the vocabulary or none, and depends only on its own row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.cpu import library
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.device import CompiledModel
from octavo.kernels.reference import logprobs as reference_logprobs
from octavo.kernels.reference import sampling as reference
from octavo.sampling.columns import SamplingBatch
from octavo.testing.op_harness import Harness, random_table
from tests.kernels.extreme_batches import check_tokens, extreme_batch, extreme_rows
from tests.kernels.test_sampling import make_batch

Sample = Callable[[FloatArray, SamplingBatch], IntArray]
VOCAB_SIZES = [1, 5, 128, 129, 700]


@pytest.fixture(scope="module")
def kernel() -> Sample:
    loaded = library.load()
    threads = library.ThreadPool(loaded, 2)
    return lambda logits, batch: library.sample(loaded, threads.handle, logits, batch)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_every_draw_is_a_token_or_none(kernel: Sample, vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    num_none = 0
    for _ in range(60):
        logits, batch = extreme_rows(rng, 12, vocab_size), extreme_batch(rng, 12, vocab_size)
        expected = reference.sample(logits, batch)
        check_tokens(expected, expected, logits, batch)
        tokens = kernel(logits, batch)
        check_tokens(tokens, expected, logits, batch)
        num_none += int((tokens == -1).sum())
        np.testing.assert_array_equal(tokens, kernel(logits, batch))
    assert 0 < num_none < 60 * 12, "both ends are seen"


def test_a_best_score_below_float32_is_no_token(kernel: Sample) -> None:
    """-100 by bias, times 1e36 by penalty, over 0.01: not even the only token has a score left."""
    logits = np.zeros((2, 300), np.float32)
    options = {"temperature": 0.01, "top_p": [0.5, 1.0], "repetition_penalty": 1e36, "bias_ids": [7]}
    batch = make_batch(2, **options, bias_values=[-100.0], allowed=[7], history=[7])
    for sample in (reference.sample, kernel):
        assert sample(logits, batch).tolist() == [-1, -1]
        assert sample(logits, replace(batch, temperature=np.zeros(2, np.float32))).tolist() == [7, 7]


@pytest.mark.parametrize(
    "wrong", [{"temperature": np.nan}, {"temperature": -1.0}, {"top_p": np.nan}, {"min_p": np.nan}, {"banned": [300]}]
)
def test_a_batch_that_no_door_let_in_is_told(kernel: Sample, wrong: dict[str, object]) -> None:
    with pytest.raises(AssertionError, match="not in the model, or its parameters are not numbers"):
        kernel(np.zeros((1, 300), np.float32), make_batch(1, **wrong))


@pytest.fixture(scope="module")
def model() -> CompiledModel:
    table = random_table(8)
    return Harness(CpuDevice(2), lambda ops: ops.embedding(table, "input_ids"), 8).compiled


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_logprobs_of_any_row(model: CompiledModel, vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    for _ in range(20):
        logits = extreme_rows(rng, 12, vocab_size)
        tokens = rng.integers(0, vocab_size, 12).astype(np.int32)
        k = int(rng.integers(0, vocab_size + 1))
        ids, logprobs, ranks = model.top_logprobs(logits, tokens, k)
        expected = reference_logprobs.top_logprobs(logits, tokens, k)
        np.testing.assert_array_equal(ids, expected[0])
        np.testing.assert_array_equal(ranks, expected[2])
        np.testing.assert_allclose(logprobs, expected[1], rtol=1e-5, atol=1e-5)
        assert np.isnan(logprobs).any(axis=1).tolist() == np.isnan(logits).any(axis=1).tolist()


def test_what_is_not_in_the_vocabulary_is_told(model: CompiledModel) -> None:
    logits = np.zeros((2, 5), np.float32)
    with pytest.raises(AssertionError, match="token 5 of a vocabulary of 5"):
        model.top_logprobs(logits, np.array([0, 5], np.int32), 1)
