"""Extreme batches: every float parameter at the ends of its range, in every combination."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.reference.sampling import edited_logits, token_weights
from octavo.sampling.columns import SamplingBatch
from tests.kernels.test_sampling import make_batch

#: a logit may be any of these; NaN is rare, since nothing else matters in its row
LOGITS = np.array([0, 1, -1, 30, -30, 1e-45, -1e-30, 1e10, -1e10, 3e38, -3e38, np.inf, -np.inf], np.float32)
PARAMETERS: dict[str, list[float]] = {
    "temperature": [0.0, 1e-37, 0.01, 1.0, 1e6, 1e37],
    "top_p": [1e-37, 1e-6, 0.5, np.nextafter(np.float32(1), np.float32(0)), 1.0],
    "top_k": [0, 0, 1, 2, 64, 2**31 - 1],
    "min_p": [0.0, 0.0, 1e-37, 0.5, 1.0],
    "presence_penalty": [-2.0, 0.0, 2.0],
    "frequency_penalty": [-2.0, 0.0, 2.0],
    "repetition_penalty": [1e-37, 1e-6, 1.0, 1e6, 1e36],
}


def extreme_rows(rng: np.random.Generator, num_rows: int, vocab_size: int) -> FloatArray:
    """Rows of a few extreme values, or of plausible logits with some extremes."""
    rows = np.empty((num_rows, vocab_size), np.float32)
    for row in rows:
        row[:] = rng.normal(0, 3, vocab_size) if rng.random() < 0.4 else rng.choice(rng.choice(LOGITS, 2), vocab_size)
        places = rng.integers(0, vocab_size, rng.integers(0, 4))
        row[places] = rng.choice(LOGITS, len(places))
        if rng.random() < 0.05:
            row[rng.integers(vocab_size)] = np.nan
    return rows


def extreme_batch(rng: np.random.Generator, num_entries: int, vocab_size: int) -> SamplingBatch:
    columns: dict[str, Any] = {name: rng.choice(values, num_entries) for name, values in PARAMETERS.items()}

    def runs(most: int) -> list[NDArray[np.int64]]:
        sizes = rng.integers(0, most + 1, num_entries) * (rng.random(num_entries) < 0.5)
        return [rng.choice(vocab_size, min(size, vocab_size), replace=False) for size in sizes]

    bias = runs(3)
    return make_batch(
        num_entries,
        **columns,
        seeds=rng.integers(0, 2**63, num_entries),
        logits_rows=np.arange(num_entries),
        history=[rng.integers(0, vocab_size, rng.integers(0, 9)) for _ in range(num_entries)],
        prompt_lens=rng.integers(0, 5, num_entries),
        allowed=runs(3),
        mask=[
            rng.integers(-(2**31), 2**31, -(-vocab_size // 32)) if rng.random() < 0.3 else []
            for _ in range(num_entries)
        ],
        banned=runs(vocab_size),
        bias_ids=bias,
        bias_values=[rng.choice([-100.0, 1e-37, 100.0], len(ids)) for ids in bias],
    )


def check_tokens(tokens: IntArray, expected: IntArray, logits: FloatArray, batch: SamplingBatch) -> None:
    """Each is a token that the specification can draw, or none if it draws none."""
    for i, token in enumerate(tokens.tolist()):
        assert -1 <= token < logits.shape[1], f"entry {i}: {token}"
        assert (token == -1) == (expected[i] == -1), f"entry {i}: {token} for {expected[i]}"
        if batch.temperature[i] == 0:
            assert token == expected[i], f"entry {i}"
        elif token >= 0:
            assert edited_logits(logits, batch, i)[token] > -np.inf, f"entry {i}: {token} was forbidden"
            assert token_weights(logits, batch, i)[token] > 0, f"entry {i}: {token} was filtered out"
