"""Scaled matrices as numbers: the specification of every kernel that multiplies them.

The operations are in float32 and in this order: a code's number, minus the zero, times the scale. The first two are
exact, so a result is the exact product, rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.scaled import IMPLIED_ZERO, FloatArray, ScaledTensor, numbers_of

_CHUNK_ELEMENTS = 1 << 20


def dequantize_scaled(tensor: ScaledTensor) -> FloatArray:
    """The numbers, in the tensor's shape."""
    out = np.empty(tensor.shape, np.float32)
    matrices = out.reshape(-1, *tensor.shape[-2:])
    codes, scales = (each.reshape(len(matrices), *each.shape[-2:]) for each in (tensor.codes, tensor.scales))
    zeros = None if tensor.zeros is None else tensor.zeros.reshape(scales.shape)
    for index, matrix in enumerate(matrices):
        _decode(tensor, codes[index], scales[index], None if zeros is None else zeros[index], matrix)
    return out


def unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., n] -> [..., 2n], the low half first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse."""
    return codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)


def columns_of(tensor: ScaledTensor) -> NDArray[np.int64]:
    """The column of the scales that belongs to each column of the matrix."""
    if tensor.groups is not None:
        return tensor.groups.astype(np.int64)
    return np.arange(tensor.cols) // tensor.format.block_of(tensor.shape)[1]


def _decode(
    tensor: ScaledTensor,
    codes: NDArray[np.uint8],
    scales: FloatArray,
    zeros: NDArray[np.int16] | None,
    out: FloatArray,
) -> None:
    numbers, per_rows = numbers_of(tensor.format.code), tensor.format.block_of(tensor.shape)[0]
    columns, step = columns_of(tensor), max(1, _CHUNK_ELEMENTS // tensor.cols)
    implied = IMPLIED_ZERO.get(tensor.format.code, 0)
    for start in range(0, len(out), step):
        rows = np.arange(start, min(start + step, len(out)))
        part = codes[rows[0] : rows[-1] + 1]
        target = out[start : start + step]
        np.take(numbers, unpack_nibbles(part) if tensor.format.is_nibbles else part, out=target)
        target -= implied if zeros is None else _spread(zeros, rows // per_rows, columns)
        target *= _spread(scales, rows // per_rows, columns)


def _spread(blocks: NDArray[Any], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[Any]:
    return blocks[rows][:, columns]
