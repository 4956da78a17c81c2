"""Counter-based random numbers: the published known answers, then the properties that sampling relies on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from octavo.kernels.reference.random import philox4x32, uniform

ONES = 0xFFFFFFFF


# Random123's known-answer vectors for philox4x32 with 10 rounds
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = (np.array([word], np.uint64) for word in counter)
    k0, k1 = (np.array([word], np.uint64) for word in key)
    assert tuple(int(word[0]) for word in philox4x32((c0, c1, c2, c3), (k0, k1))) == expected


def test_uniform_is_built_from_the_first_two_words() -> None:
    drawn = uniform(np.zeros(1, np.uint64), np.zeros(1, np.int32), np.zeros(1, np.int32))[0]
    assert drawn == ((0x6627E8D5 >> 5) * 2**26 + (0xE169C58D >> 6)) / 2**53


@pytest.mark.parametrize("vary", ["seeds", "sample_indices", "positions"])
def test_uniform_along_every_axis(vary: str) -> None:
    num_draws = 50_000
    key = {"seeds": np.full(num_draws, 7, np.uint64)}
    key |= {name: np.full(num_draws, 7, np.int32) for name in ("sample_indices", "positions")}
    key[vary] = np.arange(num_draws).astype(key[vary].dtype)
    drawn = uniform(**key)
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    neighbours = stats.pearsonr(drawn[:-1], drawn[1:])
    assert neighbours.pvalue > 1e-3


def test_every_part_of_the_key_matters() -> None:
    seeds = np.array([5, 6, 5 + 2**32, 5, 5], np.uint64)
    drawn = uniform(seeds, np.array([1, 1, 1, 2, 1], np.int32), np.array([9, 9, 9, 9, 10], np.int32))
    assert len(set(drawn.tolist())) == 5
