"""Rows go to the ranks that they are meant for, in order, and come back to their places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.distributed.collectives import Collectives
from tests.distributed.threaded_ranks import on_all_ranks

WIDTH = 5


def rows_of(rank: int, counts: list[int]) -> torch.Tensor:
    """Each row says where it is from, where it goes, and which of those it is."""
    told = [[rank, to, nth, 0.5, -1.0] for to, count in enumerate(counts) for nth in range(count)]
    return torch.tensor(told, dtype=torch.float32).view(-1, WIDTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "counts",
    [
        [[2, 1], [3, 4]],
        [[0, 5], [1, 0]],
        [[0, 0], [0, 0]],
        [[1, 0, 7], [0, 0, 0], [2, 3, 0]],
        [[3, 0, 1, 2], [0, 9, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
    ],
)
def test_rows_arrive_and_return(counts: list[list[int]], dtype: torch.dtype) -> None:
    def run(ranks: Collectives) -> None:
        own = counts[ranks.rank]
        rows = rows_of(ranks.rank, own).to(dtype)
        received, sent = ranks.all_to_all(rows, own)
        assert sent == [each[ranks.rank] for each in counts]
        expected = [
            rows_of(rank, each)[sum(each[: ranks.rank]) :][: each[ranks.rank]] for rank, each in enumerate(counts)
        ]
        assert torch.equal(received, torch.cat(expected).to(dtype))
        returned, back = ranks.all_to_all(received, sent)
        assert back == own
        assert torch.equal(returned, rows)

    on_all_ranks(len(counts), run)


def test_random_counts_many_times() -> None:
    """Every call stands for itself, whatever the one before sent."""
    table = np.random.default_rng(0).integers(0, 40, (30, 3, 3)) * (np.random.default_rng(1).random((30, 3, 3)) > 0.3)

    def run(ranks: Collectives) -> None:
        for counts in table.tolist():
            own = counts[ranks.rank]
            rows = rows_of(ranks.rank, own)
            received, sent = ranks.all_to_all(rows, own)
            assert received[:, 1].eq(ranks.rank).all()
            assert received[:, 0].tolist() == [rank for rank, count in enumerate(sent) for _ in range(count)]
            assert torch.equal(ranks.all_to_all(received, sent)[0], rows)

    on_all_ranks(3, run)


def test_a_resting_rank_keeps_its_rows() -> None:
    def run(ranks: Collectives) -> None:
        rows = rows_of(ranks.rank, [2, 2])
        with ranks.resting():
            kept, counts = ranks.all_to_all(rows, [2, 2])
        assert kept is rows
        assert counts == [2, 2]

    on_all_ranks(2, run)


def test_counts_that_do_not_fit_are_refused() -> None:
    def run(ranks: Collectives) -> None:
        with pytest.raises(AssertionError, match=r"4 rows in parts of \[2, 3\]"):
            ranks.all_to_all(rows_of(0, [2, 2]), [2, 3])

    on_all_ranks(2, run)
