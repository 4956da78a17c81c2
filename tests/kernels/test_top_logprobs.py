"""The spec of log-probabilities, against scipy's log-softmax and a full sort."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from octavo.kernels.reference.logprobs import top_logprobs


@pytest.mark.parametrize("k", [0, 1, 5, 40])
@pytest.mark.parametrize("decimals", [0, 7], ids=["many equals", "no equals"])
def test_against_a_full_sort(k: int, decimals: int) -> None:
    rng = np.random.default_rng(k)
    logits = rng.normal(0, 3, (6, 40)).round(decimals).astype(np.float32)
    tokens = rng.integers(0, 40, 6).astype(np.int32)
    ids, logprobs, ranks = top_logprobs(logits, tokens, k)
    assert ids.dtype == ranks.dtype == np.int32
    assert logprobs.dtype == np.float32
    expected = log_softmax(logits.astype(np.float64), axis=1)
    for i in range(6):
        order = sorted(range(40), key=lambda token: (-logits[i, token], token))
        assert ids[i].tolist() == [tokens[i], *order[:k]]
        np.testing.assert_allclose(logprobs[i], expected[i, ids[i]], rtol=1e-5, atol=1e-6)
        assert ranks[i] == 1 + order.index(tokens[i])


def test_infinite_logits() -> None:
    """Tokens of -inf have a log-probability of -inf and do not affect others."""
    logits = np.array([[0.0, -np.inf, 0.0]], np.float32)
    ids, logprobs, ranks = top_logprobs(logits, np.array([1], np.int32), 2)
    assert ids.tolist() == [[1, 0, 2]]
    np.testing.assert_allclose(logprobs, [[-np.inf, -np.log(2), -np.log(2)]], rtol=1e-6)
    assert ranks.tolist() == [3]
