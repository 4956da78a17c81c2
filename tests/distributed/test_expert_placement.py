"""Placements of experts: they are whole, never worse than before, and reached by rounds that lose no expert."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.distributed.expert_moves import PARKED, rounds
from octavo.distributed.expert_placement import balanced, balancedness, first_slots, places_of, rank_loads


@st.composite
def layers(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], list[int], int]:
    """Loads, the slots of any earlier placement, and the number of ranks."""
    num_ranks, size = draw(st.integers(2, 4)), draw(st.integers(1, 9))
    num_slots = num_ranks * size
    num_experts = draw(st.integers(size, num_slots))
    few = st.lists(st.integers(0, 10**6) | st.just(0), min_size=num_experts, max_size=num_experts)
    slots = first_slots(num_experts, num_slots)
    return np.array(draw(few)), balanced(np.array(draw(few)), slots, num_ranks), num_ranks


@settings(max_examples=100, deadline=None)
@given(layers(), st.integers(1, 4))
def test_a_placement_is_whole_not_worse_and_can_be_reached(
    layer: tuple[np.ndarray[Any, Any], list[int], int], most: int
) -> None:
    loads, before, num_ranks = layer
    after = balanced(loads, before, num_ranks)
    assert {*after} == {*range(len(loads))}
    size = len(after) // num_ranks
    for rank in range(num_ranks):
        own = after[rank * size : (rank + 1) * size]
        assert len({*own}) == len(own), "two copies on one rank help nobody"
    assert balancedness(loads, after, num_ranks) >= balancedness(loads, before, num_ranks)
    assert carried_out(before, after, num_ranks, most) == after


def carried_out(before: list[int], after: list[int], num_ranks: int, most: int) -> list[int]:
    """By rounds, on experts that stand for their weights."""
    size, now, parked = len(before) // num_ranks, list(before), [-1] * num_ranks
    num_rounds = 0
    for one in rounds(before, after, num_ranks, most):
        if one.park is not None:
            parked[one.park // size] = now[one.park]
        read = [parked[move.source_rank] if move.source == PARKED else now[move.source] for move in one.moves]
        assert all(move.source == PARKED or move.source // size == move.source_rank for move in one.moves)
        for rank in range(num_ranks):
            assert sum(move.source_rank == rank for move in one.moves) <= most
            assert sum(move.target_rank == rank for move in one.moves) <= most
        for move, expert in zip(one.moves, read, strict=True):
            now[move.target] = expert
        num_rounds += 1
    assert num_rounds <= sum(old != new for old, new in zip(before, after, strict=True)), (
        "each round moves one at least"
    )
    return now


@pytest.mark.parametrize(("num_redundant", "least"), [(0, 0.95), (8, 0.99)])
def test_skewed_loads_become_even(num_redundant: int, least: float) -> None:
    """As a router that favours a few experts gives them, which are all on the first rank."""
    loads = (100_000 / np.arange(1, 129) ** 0.8).astype(np.int64)
    slots = first_slots(128, 128 + num_redundant)
    found = balanced(loads, slots, 4)
    assert balancedness(loads, slots, 4) < 0.55
    assert balancedness(loads, found, 4) > least
    assert balanced(loads, found, 4) == found, "what is even stays"


def test_a_long_circle_is_opened_by_parking() -> None:
    before, after = [0, 1, 2, 3], [1, 2, 3, 0]
    steps = list(rounds(before, after, 2, 1))
    assert [one.park is not None for one in steps] == [True, *[False] * (len(steps) - 1)]
    assert carried_out(before, after, 2, 1) == after
    assert len(list(rounds(before, after, 2, 2))) == 1


def test_rows_find_the_copies() -> None:
    slots = [4, 1, 0, 2, 3, 4]
    assert places_of(slots, 5, 2).tolist() == [[1, 2, 0], [1, 1, 0], [1, 3, 0], [1, 4, 0], [2, 0, 5]]
    assert rank_loads(np.array([2, 2, 2, 2, 8]), slots, 2) == [8.0, 8.0]
    assert balancedness(np.zeros(5, np.int64), slots, 2) == 1.0
