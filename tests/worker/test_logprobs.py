"""Logprob rows: each position gets as many best tokens as it asks for, and pays for no other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.reference.logprobs import top_logprobs
from octavo.messages import LogprobRow
from octavo.worker.logprobs import logprob_rows

LOGITS = np.log(np.array([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0.5, 0.2, 0.3]], np.float32))


def model_that_notes(calls: list[tuple[int, int]]) -> Any:
    def noted(
        logits: FloatArray, tokens: IntArray, k: int, *, as_logits: bool
    ) -> tuple[IntArray, FloatArray, IntArray]:
        calls.append((len(tokens), k))
        return top_logprobs(logits, tokens, k, as_logits=as_logits)

    return SimpleNamespace(top_logprobs=noted)


def rows_of(tokens: list[int], counts: list[int], calls: list[tuple[int, int]] | None = None) -> list[LogprobRow]:
    model = model_that_notes([] if calls is None else calls)
    return logprob_rows(model, LOGITS[: len(tokens)], np.array(tokens, np.int32), np.array(counts), as_logits=False)


def test_the_chosen_token_then_the_best() -> None:
    (row,) = rows_of([1], [2])
    assert row.token_ids == [1, 0, 2]
    np.testing.assert_allclose(row.logprobs, np.log([0.2, 0.5, 0.3]), rtol=1e-6)
    assert row.rank == 3
    assert all(type(value) is float for value in row.logprobs)
    assert all(type(value) is int for value in (*row.token_ids, row.rank))


def test_counts_differ() -> None:
    calls: list[tuple[int, int]] = []
    rows = rows_of([1, 1, 0, 2], [0, -1, 1, 1], calls)
    assert [row.token_ids for row in rows] == [[1], [1, 1, 0, 2], [0, 2], [2, 0]]
    assert [row.rank for row in rows] == [3, 1, 3, 2]
    assert sorted(calls) == [(1, 0), (1, 3), (2, 1)]


def test_equal_counts_share_a_call() -> None:
    calls: list[tuple[int, int]] = []
    rows_of([1, 1, 0, 2], [2, 2, 2, 2], calls)
    assert calls == [(4, 2)]


def test_a_failed_position_has_an_empty_row() -> None:
    calls: list[tuple[int, int]] = []
    rows = rows_of([1, -1, -1], [1, 1, 2], calls)
    assert rows[0].token_ids == [1, 0]
    assert rows[1] == rows[2] == LogprobRow([], [], 0)
    assert calls == [(1, 1)]
