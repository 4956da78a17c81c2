"""Counter-based random numbers: each is a pure function of its seed and counter, without state.

    key     = (seed low, seed high)             one request
    counter = (position, sample index, 0, 0)    one token of one of its sequences
        |
    Philox4x32-10  ->  4 words of 32 bits  ->  u in [0, 1), a multiple of 2**-53

So a token's random number depends only on its request's seed, its sequence's index and its position: not on the batch,
the step, or whether its sequence was preempted.

Philox is from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.arrays import IntArray

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

Words = NDArray[np.uint64]  # each holds one 32-bit word, so products do not overflow


def uniform(seeds: NDArray[np.uint64], sample_indices: IntArray, positions: IntArray) -> NDArray[np.float64]:
    """One number in [0, 1) per entry, with the 53 bits of a double."""
    low, high = seeds & _LOW, seeds >> _32
    zero = np.zeros_like(low)
    words = philox4x32((_word(positions), _word(sample_indices), zero, zero), (low, high))
    mantissa = ((words[0] >> np.uint64(5)) << np.uint64(26)) | (words[1] >> np.uint64(6))
    return mantissa * 2.0**-53


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """Philox4x32-10, element by element."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        left, right = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (right >> _32) ^ c1 ^ k0, right & _LOW, (left >> _32) ^ c3 ^ k1, left & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def _word(values: IntArray) -> Words:
    return values.astype(np.uint32).astype(np.uint64)
