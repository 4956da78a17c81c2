"""The conversions of csrc/cuda/coded_cache.cuh, in numpy, for every byte and for numbers in between."""

from __future__ import annotations

import numpy as np
import torch

EVERY = np.arange(256, dtype=np.uint32)
EXACT = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
NUMBERS = ~np.isnan(EXACT)


def test_e4m3_in_a_halfs_places() -> None:
    halves = ((EVERY << 8) & 0x8000) | (((EVERY << 8) & 0x7F00) >> 1)
    read = halves.astype(np.uint16).view(np.float16).astype(np.float32) * 256
    assert read[NUMBERS].tolist() == EXACT[NUMBERS].tolist()


def test_e4m3_in_a_bfloat16s_places() -> None:
    """bfloat16 is the upper half of a float32; 0x7b80 is 2^120."""
    upper = ((EVERY << 8) & 0x8000) | (((EVERY << 8) & 0x7F00) >> 4)
    factor = (np.uint32(0x7B80) << 16).view(np.float32)
    assert factor == 2.0**120
    read = (upper << 16).astype(np.uint32).view(np.float32) * factor
    assert read[NUMBERS].tolist() == EXACT[NUMBERS].tolist()


def test_numbers_round_to_the_nearest_e4m3() -> None:
    positive = np.sort(EXACT[NUMBERS & (EVERY < 128)])
    middle = (positive[:-1] + positive[1:]) / 2  # ties round to even
    x = np.concatenate([positive, middle, middle * 1.001, middle * 0.999, [1e4]]).astype(np.float32)
    bits = (np.minimum(x, np.float32(448)) * np.float32(2.0**-120)).view(np.uint32)
    got = (bits + 0x7FFFF + (bits >> 20 & 1)) >> 20
    index = np.arange(len(middle))
    expected = [*range(len(positive)), *(index + index % 2), *(index + 1), *index, len(positive) - 1]
    assert got.tolist() == expected


def test_int8_in_the_last_places_of_a_float() -> None:
    biased = EVERY ^ 0x80
    read = (biased | 0x4B000000).astype(np.uint32).view(np.float32) - np.float32(2.0**23 + 128)
    assert read.tolist() == EVERY.astype(np.uint8).view(np.int8).tolist()
