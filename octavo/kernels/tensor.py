"""HostTensor: a weight as its file stores it, dense or block-quantised, without copying it.

A tensor is `rows x cols` elements in row-major order; leading dimensions, if any, fold into rows.
A row is a run of equal blocks and its bytes depend on no other row, so rows can be permuted, cut
and joined without touching the numbers inside:

    row 0 | block 0 | block 1 | ... | block cols/32-1 |      Q8_0: 34 bytes = fp16 scale + 32 int8
    row 1 | ...

The data is usually a view into a memory-mapped file: read-only, and read from disk when touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

FileDType = Literal[
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4"
]
#: codes in blocks of 32 or 128 columns, each with a float32 scale: as the CPU holds the matrices of `kernels/scaled.py`
CodedDType = Literal["I8_32", "I8_128", "U4_32", "U4_128", "F8_32", "F8_128", "E2M1_32"]
#: parts of a quantised matrix, which are no numbers without its scales; see `kernels/scaled.py`
PartDType = Literal["F8_E4M3", "I8", "U8", "I32", "I64"]
DType = FileDType | CodedDType | PartDType
FILE_DTYPES: tuple[FileDType, ...] = get_args(FileDType)
#: what a kernel may multiply, in the order of C++'s enum
DTYPES: tuple[FileDType | CodedDType, ...] = (*FILE_DTYPES, *get_args(CodedDType))
PART_DTYPES: tuple[PartDType, ...] = get_args(PartDType)

#: (elements, bytes) of a block. The layouts of Q formats are ggml's; see `reference/dequantize.py`.
BLOCK_FORMATS: dict[DType, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),
    "MXFP4": (32, 17),
    "I8_32": (32, 37),
    "I8_128": (128, 133),
    "U4_32": (32, 21),
    "U4_128": (128, 69),
    "F8_32": (32, 36),
    "F8_128": (128, 132),
    "E2M1_32": (32, 21),
    "F8_E4M3": (1, 1),
    "I8": (1, 1),
    "U8": (1, 1),
    "I32": (1, 4),
    "I64": (1, 8),
}
DENSE_DTYPES: frozenset[DType] = frozenset({"F32", "F16", "BF16"})
BLOCK_DTYPES: frozenset[DType] = frozenset(FILE_DTYPES) - DENSE_DTYPES


@dataclass(frozen=True, slots=True, eq=False)
class HostTensor:
    """A tensor over raw bytes.

    shape: in elements, slowest dimension first. data: a contiguous 1-D uint8 array of `num_bytes(dtype, shape)` bytes;
    numpy has no type for BF16.
    """

    dtype: DType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def __post_init__(self) -> None:
        expected = num_bytes(self.dtype, self.shape)
        if self.data.dtype != np.uint8 or self.data.ndim != 1 or self.data.nbytes != expected:
            raise ValueError(
                f"{self.dtype} tensor of shape {self.shape} needs {expected} bytes as a 1-D uint8 array, "
                f"got {self.data.nbytes} bytes of {self.data.dtype} with {self.data.ndim} dimensions"
            )

    @property
    def is_dense(self) -> bool:
        return self.dtype in DENSE_DTYPES

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def cols(self) -> int:
        return self.shape[-1]

    @property
    def row_bytes(self) -> int:
        return num_bytes(self.dtype, (self.cols,))

    @property
    def row_data(self) -> NDArray[np.uint8]:
        """The bytes as [rows, row_bytes]."""
        return self.data.reshape(self.rows, self.row_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class RandomTensor(HostTensor):
    """A matrix of normal random numbers, not drawn yet: a backend with its own memory draws it there. `data` has the
    right length but takes no memory."""

    seed: int = 0
    std: float = 0.0
    cut_from: Cut | None = None  # the part that it is of the matrix that is drawn

    @classmethod
    def undrawn(
        cls, dtype: DType, shape: tuple[int, ...], seed: int, std: float, cut_from: Cut | None = None
    ) -> RandomTensor:
        data = np.broadcast_to(np.zeros(1, np.uint8), num_bytes(dtype, shape))
        return cls(dtype, shape, data, seed, std, cut_from)


@dataclass(frozen=True, slots=True)
class Cut:
    """A rank's part of a tensor of `shape`: some runs of entries along one dimension."""

    shape: tuple[int, ...]
    dimension: int
    slices: tuple[slice, ...]

    @property
    def result(self) -> tuple[int, ...]:
        """The part's shape."""
        entries = sum(each.stop - each.start for each in self.slices)
        return (*self.shape[: self.dimension], entries, *self.shape[self.dimension + 1 :])

    @property
    def transposed(self) -> Cut:
        """The same part of the transposed matrix."""
        return Cut(self.shape[::-1], 1 - self.dimension, self.slices)


#: the label of a tensor that nobody has named
UNNAMED = "a tensor"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that is not read yet, and how to read it. read_part: reads a part without the rest; None if `read` gives
    a view, of which any part can be taken. label: its file and name, for messages."""

    dtype: DType
    shape: tuple[int, ...]
    read: Callable[[], HostTensor]
    read_part: Callable[[Cut], HostTensor] | None = None
    label: str = UNNAMED

    @property
    def num_bytes(self) -> int:
        return num_bytes(self.dtype, self.shape)

    def then(self, change: Callable[[HostTensor], HostTensor]) -> StoredTensor:
        """The same tensor, changed when it is read. The change keeps the shape, and a dense dtype; a part of the
        changed tensor is the changed part."""
        return replace(self, read=lambda: change(self.read()), read_part=lambda cut: change(self.part(cut).read()))

    def part(self, cut: Cut) -> StoredTensor:
        """A rank's part of it, not read yet."""
        read_part = self.read_part or (lambda cut: take_part(self.read(), cut))
        return StoredTensor(self.dtype, cut.result, lambda: read_part(cut), label=self.label)


def at_hand(tensor: HostTensor) -> StoredTensor:
    """A tensor that needs no reading: a view into a mapped file."""
    return StoredTensor(tensor.dtype, tensor.shape, lambda: tensor)


def num_bytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. Raises ValueError if the last dimension does not fill whole blocks."""
    block_len, block_bytes = BLOCK_FORMATS[dtype]
    cols = shape[-1] if shape else 1
    if cols % block_len:
        raise ValueError(f"{dtype} rows hold blocks of {block_len} elements; {cols} columns do not divide")
    return prod(shape) // block_len * block_bytes


def from_array(array: NDArray[np.float32] | NDArray[np.float16]) -> HostTensor:
    """Wrap a float32 or float16 array; copies only if it is not contiguous."""
    dtype: DType = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}[array.dtype]  # type: ignore[assignment]
    return HostTensor(dtype, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def cuts_blocks(dtype: DType, cut: Cut) -> bool:
    """Whether a part of a tensor of this type would end inside a block."""
    block_len = BLOCK_FORMATS[dtype][0]
    return cut.dimension == len(cut.shape) - 1 and any(s.start % block_len or s.stop % block_len for s in cut.slices)


def take_part(tensor: HostTensor, cut: Cut) -> HostTensor:
    """A part of a tensor: a view if it is one run of rows, else a copy. Columns are cut between blocks."""
    assert tensor.shape == cut.shape, f"a part of {cut.shape} from a tensor of {tensor.shape}"
    if isinstance(tensor, RandomTensor):
        return RandomTensor.undrawn(tensor.dtype, cut.result, tensor.seed, tensor.std, cut)
    is_columns = cut.dimension == len(cut.shape) - 1
    block_len = BLOCK_FORMATS[tensor.dtype][0] if is_columns else 1
    entry_bytes = num_bytes(tensor.dtype, (block_len, *cut.shape[cut.dimension + 1 :]))
    runs = tensor.data.reshape(prod(cut.shape[: cut.dimension]), -1)
    assert not cuts_blocks(tensor.dtype, cut), f"{cut} cuts a block of {block_len} columns"
    entries = [(each.start // block_len * entry_bytes, each.stop // block_len * entry_bytes) for each in cut.slices]
    parts = [runs[:, begin:end] for begin, end in entries]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return HostTensor(tensor.dtype, cut.result, np.ascontiguousarray(joined).reshape(-1))


def take_rows(tensor: HostTensor, order: NDArray[np.int64]) -> HostTensor:
    """Rows in a new order (a gather), for any dtype; copies."""
    data = np.ascontiguousarray(tensor.row_data[order]).reshape(-1)
    return HostTensor(tensor.dtype, (len(order), tensor.cols), data)
