"""FlatLogprobs reads as a list of dicts."""

from __future__ import annotations

import pytest

from octavo import FlatLogprobs, Logprob

ROWS = [{5: Logprob(-1.0, 3, "a"), 9: Logprob(-0.5, 1, None)}, {7: Logprob(-2.0, 1, "b")}, {}]


def flat() -> FlatLogprobs:
    found = FlatLogprobs()
    found.append_fast([5, 9], [-1.0, -0.5], iter([3, 1]), ["a", None])
    found.append(ROWS[1])
    found.append(None)
    return found


def test_it_reads_as_a_list_of_dicts() -> None:
    assert list(flat()) == ROWS
    assert [flat()[place] for place in (0, -2, -1)] == ROWS
    assert len(flat()) == 3
    assert flat() == flat()
    assert ROWS[1] in flat()
    with pytest.raises(IndexError):
        flat()[3]


def test_a_slice_is_flat_again() -> None:
    for part in (slice(1, None), slice(None, -1), slice(0, 3, 2), slice(5, 9)):
        assert isinstance(flat()[part], FlatLogprobs)
        assert list(flat()[part]) == ROWS[part]


def test_its_columns() -> None:
    assert (flat().start_indices, flat().end_indices) == ([0, 2, 3], [2, 3, 3])
    assert (flat().token_ids, flat().ranks) == ([5, 9, 7], [3, 1, 1])
    assert (flat().logprobs, flat().decoded_tokens) == ([-1.0, -0.5, -2.0], ["a", None, "b"])


def test_it_grows_at_its_end_only() -> None:
    longer = flat()
    longer.extend(ROWS[:2])
    assert list(longer) == ROWS + ROWS[:2]
    for change in (lambda: longer.insert(0, {}), lambda: longer.pop(), lambda: longer.__setitem__(0, {})):
        with pytest.raises(TypeError, match="grows at its end only"):
            change()
