"""ScaledTensor: a matrix as small codes, with scales that blocks of them share.

    w[r, c] = (number(codes[r, c]) - zeros[R, C]) * scales[R, C]        (R, C): the block that (r, c) is in

    one block          a scale for the whole matrix         block (0, 0): 0 stands for all rows, or all columns
    1 x all            a scale for each output              block (1, 0)
    1 x 128            a scale for each group of inputs     block (1, 128)
    128 x 128          DeepSeek's and Qwen's fp8            block (128, 128); the last may be smaller

    F8_E4M3            a byte: a float of 8 bits, without infinities
    I8                 a byte: -128 to 127
    U4                 a nibble: 0 to 15; without zeros, 8 stands for zero
    E2M1               a nibble: 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives (MXFP4)
    NF4, IQ4_NL        a nibble: one of bitsandbytes', or of ggml's, sixteen numbers

Two nibbles share a byte, the even column's in the low half. Checkpoints of every method are brought into this one form
(`octavo/quantization/`), which is what a kernel gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.tensor import DType

Code = Literal["F8_E4M3", "I8", "U4", "E2M1", "NF4", "IQ4_NL"]
CODES: tuple[Code, ...] = get_args(Code)
NIBBLES: tuple[Code, ...] = ("U4", "E2M1", "NF4", "IQ4_NL")
FloatArray = NDArray[np.float32]

_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
#: quantiles of the normal distribution; from QLoRA (Dettmers et al., 2023), as bitsandbytes stores them
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True, slots=True)
class ScaledFormat:
    """block: how many rows and columns share a scale, 0 for all. has_zeros: each block has a zero of its own.
    is_sorted: the inputs are in groups by their importance (act-order)."""

    code: Code
    block: tuple[int, int]
    has_zeros: bool = False
    is_sorted: bool = False

    @property
    def is_nibbles(self) -> bool:
        return self.code in NIBBLES

    @property
    def label(self) -> str:
        """For people: "I8 per output", "U4 in groups of 128 with zeros"."""
        rows, cols = self.block
        shape = {(0, 0): "per tensor", (1, 0): "per output"}.get(self.block)
        shape = shape or (f"in groups of {cols}" if rows == 1 else f"in blocks of {rows}x{cols}")
        return f"{self.code} {shape}{' with zeros' if self.has_zeros else ''}{', sorted' if self.is_sorted else ''}"

    def blocks_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of a tensor."""
        per = self.block_of(shape)
        return (*shape[:-2], -(-shape[-2] // per[0]), -(-shape[-1] // per[1]))

    def block_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The block with its sizes, none of which is 0."""
        return self.block[0] or shape[-2], self.block[1] or shape[-1]


@dataclass(frozen=True, slots=True, eq=False)
class ScaledTensor:
    """shape: [out, in], or [experts, out, in]. codes: uint8 [..., out, in], or [..., out, in / 2] of nibbles. scales:
    float32, `format.blocks_of(shape)`; scale_dtype: the type that the checkpoint has them in, and that holds them
    exactly. zeros: int16, like the scales. groups: int32 [in], the group of each input, if they are sorted.
    input_scale: of static activations, if there is one."""

    format: ScaledFormat
    shape: tuple[int, ...]
    codes: NDArray[np.uint8]
    scales: FloatArray
    scale_dtype: DType = "F32"
    zeros: NDArray[np.int16] | None = None
    groups: NDArray[np.int32] | None = None
    input_scale: float | None = None

    def __post_init__(self) -> None:
        *lead, rows, cols = self.shape
        stored = cols // 2 if self.format.is_nibbles else cols
        assert self.codes.shape == (*lead, rows, stored), f"codes of {self.codes.shape} for {self.shape}"
        expected = self.format.blocks_of(self.shape)
        if self.groups is None:
            assert self.scales.shape == expected, f"scales of {self.scales.shape}, not {expected}"
        assert (self.groups is not None) == self.format.is_sorted, "groups where the format sorts inputs"
        assert (self.zeros is not None) == self.format.has_zeros, "zeros where the format has them"

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def cols(self) -> int:
        return self.shape[-1]

    @property
    def num_bytes(self) -> int:
        arrays = (self.codes, self.scales, self.zeros, self.groups)
        return sum(array.nbytes for array in arrays if array is not None)


def numbers_of(code: Code) -> FloatArray:
    """The number that each code stands for: 256 of a byte, 16 of a nibble."""
    return _NUMBERS[code]


def _e4m3() -> FloatArray:
    codes = np.arange(256)
    sign, exponent, mantissa = np.where(codes & 128, -1.0, 1.0), codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    numbers = sign * np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    numbers[[0x7F, 0xFF]] = np.nan
    return numbers.astype(np.float32)


_NUMBERS: dict[Code, FloatArray] = {
    "F8_E4M3": _e4m3(),
    "I8": np.arange(256).astype(np.uint8).view(np.int8).astype(np.float32),
    "U4": np.arange(16, dtype=np.float32),
    "E2M1": np.array([*_E2M1, *(-number for number in _E2M1)], np.float32),
    "NF4": np.array(_NF4, np.float32),
    "IQ4_NL": np.array(_IQ4_NL, np.float32),
}
#: what is subtracted from a code without a zero of its own
IMPLIED_ZERO: dict[Code, int] = {"U4": 8}
