"""The conversions of csrc/cuda/coded_cache.cuh and triton/attention/codes.py, in numpy, for every byte and between."""

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


def test_int8_in_the_last_places_of_a_half() -> None:
    biased = EVERY ^ 0x80
    read = (biased | 0x6400).astype(np.uint16).view(np.float16) - np.array(0x6480, np.uint16).view(np.float16)
    assert read.tolist() == EVERY.astype(np.uint8).view(np.int8).tolist()


def permuted(word: int, places: int, other: int = 0) -> int:
    """As __byte_perm(word, other, places)."""
    eight = word.to_bytes(4, "little") + other.to_bytes(4, "little")
    return int.from_bytes(bytes(eight[places >> 4 * i & 7] for i in range(4)), "little")


def test_which_bytes_of_a_word_become_pairs() -> None:
    """In order: 0 and 1, and 2 and 3. Turned: 0 and 2, and 1 and 3."""
    word, wanted = 0xD3C2B1A0, {0x4140: (0, 1), 0x4342: (2, 3), 0x4240: (0, 2), 0x4341: (1, 3)}
    for places, (low, high) in wanted.items():
        assert (
            permuted(word, places, 0x64)
            == 0x64 << 24 | (word >> 8 * high & 0xFF) << 16 | 0x64 << 8 | word >> 8 * low & 0xFF
        )
    turned = permuted(word, 0x3120)  # its halves are what the instruction for two codes takes
    assert turned.to_bytes(4, "little") == bytes([0xA0, 0xC2, 0xB1, 0xD3])
    upper = [(turned << 8) & 0xFFFFFFFF, turned]  # where there is none: the upper bytes of each 16 bits
    assert [x & 0xFF00FF00 for x in upper] == [0xB100A000, 0xD300C200]
