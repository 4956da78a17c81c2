"""Codes of 4 or 8 bits in words of 32, as compressed-tensors, GPTQ and AWQ pack them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError
from octavo.kernels.reference.scaled import pack_nibbles
from octavo.kernels.scaled import Code
from octavo.kernels.tensor import StoredTensor
from octavo.quantization.scaled import ScaledScheme

#: the nibbles of AWQ's words hold columns 0, 2, 4, 6, 1, 3, 5, 7: where columns 0 to 7 are
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True)
class PackedScheme(ScaledScheme):
    """bits: of a code. Words are along the inputs, and sorted inputs may be cut between any two words."""

    bits: int

    @property
    def block_len(self) -> int:
        return 32 // self.bits if self.format.is_sorted else self.format.block[1] or 32 // self.bits


def code_of(bits: int) -> Code:
    """Codes of 8 bits become signed ones."""
    return "U4" if bits == 4 else "I8"


def unpacked(words: NDArray[np.int32], bits: int, axis: int, order: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """The codes along an axis, which gets 32 / bits times as long; the lowest bits first, or in this order."""
    codes = np.moveaxis(words, axis, -1)
    data = np.ascontiguousarray(codes).view(np.uint8)
    if bits == 4:
        data = np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)
    if order is not None:
        data = data.reshape(*data.shape[:-1], -1, len(order))[..., list(order)].reshape(data.shape)
    return np.moveaxis(data, -1, axis)


def as_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Unsigned codes [out, in] as a ScaledTensor has them."""
    return pack_nibbles(codes) if bits == 4 else np.ascontiguousarray(codes) ^ np.uint8(128)


def as_zeros(zeros: NDArray[np.integer], bits: int) -> NDArray[np.int16] | None:
    """Unsigned zeros; None if every one is the middle, which codes have anyway."""
    middle = 1 << bits - 1
    if (zeros == middle).all():
        return None
    return zeros.astype(np.int16) - np.int16(0 if bits == 4 else middle)


def checked_groups(source: StoredTensor, groups: NDArray[np.int32], num_groups: int) -> NDArray[np.int32]:
    """The group of each input. Raises ModelLoadError if there are fewer."""
    first = int(groups.min(initial=0))
    if first < 0 or int(groups.max(initial=0)) >= num_groups:
        raise ModelLoadError(
            f"{source.label} names groups {first} to {groups.max()}, allowed are 0 to {num_groups - 1}; download the "
            "model again"
        )
    return groups
