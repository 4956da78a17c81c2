"""Tokens on their way to the host: of which rows and positions, and in whose memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from octavo.messages import StepPlan  # noqa: E402
from octavo.worker.launched_steps import LaunchedSteps  # noqa: E402

NUM_ROWS, KEPT = 5, 4


class Histories:
    """In place of the host's rows: what was filled in where."""

    def __init__(self) -> None:
        self.filled: dict[tuple[int, int], int] = {}

    def reserve(self, rows: Any, positions: Any) -> None: ...

    def fill(self, rows: Any, positions: Any, tokens: Any) -> None:
        self.filled |= dict(zip(zip(rows.tolist(), positions.tolist(), strict=True), tokens.tolist(), strict=True))


def test_tokens_that_rows_keep_are_found_by_their_positions() -> None:
    states: Any = Histories()
    steps, kept = LaunchedSteps(states, NUM_ROWS, torch.device("cpu")), torch.zeros(NUM_ROWS, KEPT, dtype=torch.int32)
    rows, positions, expected = np.array([3, 0], np.int32), np.array([6, 13], np.int32), {}
    for turn in range(6):
        step = steps.add(StepPlan(turn, rows=rows.tolist()), rows, positions + turn)
        for row, position in zip(rows.tolist(), (positions + turn).tolist(), strict=True):
            kept[row, position % KEPT] = expected[row, position] = 100 * row + position
        steps.send_kept(step, kept)
        if turn % 2:
            assert step.result().sampled_token_ids == [306 + turn, 13 + turn]
    assert states.filled == expected
    assert len(steps._free_slots[kept.shape]) == 2, "as many as were on their way at once"


def test_both_kinds_of_copies_come_in_the_order_of_their_steps() -> None:
    states: Any = Histories()
    steps, row = LaunchedSteps(states, NUM_ROWS, torch.device("cpu")), np.array([2], np.int32)
    first = steps.add(StepPlan(0, rows=[2]), row, np.array([7], np.int32))
    steps.send(first, torch.tensor([70], dtype=torch.int32))
    kept = torch.full((NUM_ROWS, KEPT), -1, dtype=torch.int32)
    kept[2, 0] = 80
    second = steps.add(StepPlan(1, rows=[2]), row, np.array([8], np.int32))
    steps.send_kept(second, kept)
    assert second.result().sampled_token_ids == [80]
    assert states.filled == {(2, 7): 70, (2, 8): 80}
    assert first.result().sampled_token_ids == [70]
