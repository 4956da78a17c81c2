"""top_logprobs of the cpu backend against numpy's specification of it."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.reference.logprobs import top_logprobs
from octavo.testing.op_harness import Harness, random_table


@pytest.mark.parametrize(("vocab_size", "k"), [(1, 1), (33, 0), (33, 33), (5000, 20), (5000, 5000)])
@pytest.mark.parametrize("ties", [False, True])
def test_agrees_with_the_reference(vocab_size: int, k: int, ties: bool) -> None:
    rng = np.random.default_rng(vocab_size + k)
    logits = (10 * rng.standard_normal((9, vocab_size))).astype(np.float32)
    if ties:
        logits = np.round(logits / 4)
    tokens = rng.integers(0, vocab_size, 9, np.int32)
    tokens[0] = logits[0].argmax()
    table = random_table(8)
    model = Harness(CpuDevice(2), lambda ops: ops.embedding(table, "input_ids"), 8).compiled
    for ours, theirs in zip(model.top_logprobs(logits, tokens, k), top_logprobs(logits, tokens, k), strict=True):
        if ours.dtype == np.float32:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-5)
        else:
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("best", [1e10, 3e38, -3e38])
def test_equals_of_a_large_best_share_the_mass(best: float) -> None:
    """Added to so large a number, the logarithm of the mass vanishes in float32."""
    logits = np.full((1, 153), best, np.float32)
    table = random_table(8)
    model = Harness(CpuDevice(2), lambda ops: ops.embedding(table, "input_ids"), 8).compiled
    for top in (model.top_logprobs, top_logprobs):
        np.testing.assert_allclose(top(logits, np.array([7], np.int32), 20)[1], -np.log(153), rtol=1e-6)
