"""Scaled matrices in the forms that the C++ kernels multiply: codes in blocks of a row, each with its scale and zero.

    F8_E4M3    F8_128, F8_32      a scale for each block: those of larger blocks of the checkpoint are repeated
    I8         I8_128, I8_32
    U4         U4_128, U4_32
    E2M1       E2M1_32            multiplied as twice the number, which is a whole one, at half the scale: still exact
    others     F32                NF4; inputs that are not in order; inputs that 32 does not divide

Blocks of 128 where the checkpoint's blocks and the inputs allow it.
"""

from __future__ import annotations

import numpy as np

from octavo.kernels.parameters import Parameter
from octavo.kernels.reference.dequantize import RECORDS
from octavo.kernels.reference.scaled import columns_of, dequantize_scaled
from octavo.kernels.scaled import IMPLIED_ZERO, ScaledFormat, ScaledTensor
from octavo.kernels.tensor import BLOCK_FORMATS, DType, HostTensor, from_array

_FORMS: dict[str, tuple[DType, DType]] = {
    "F8_E4M3": ("F8_128", "F8_32"),
    "I8": ("I8_128", "I8_32"),
    "U4": ("U4_128", "U4_32"),
    "E2M1": ("E2M1_32", "E2M1_32"),
}


def held_dtype(parameter: Parameter) -> DType:
    """The type in which the backend holds a matrix."""
    form = parameter.scheme.format
    return parameter.sources[0].dtype if form is None else block_dtype(form, parameter.shape)


def block_dtype(form: ScaledFormat, shape: tuple[int, ...]) -> DType:
    cols, per = shape[-1], form.block_of(shape)[1]
    for dtype in () if form.is_sorted else _FORMS.get(form.code, ()):
        length = BLOCK_FORMATS[dtype][0]
        if cols % length == 0 and (per % length == 0 or per >= cols):
            return dtype
    return "F32"


def in_blocks(tensor: ScaledTensor) -> HostTensor:
    dtype = block_dtype(tensor.format, tensor.shape)
    if dtype == "F32":
        return from_array(dequantize_scaled(tensor))
    length, num_bytes = BLOCK_FORMATS[dtype]
    count = tensor.cols // length
    rows = np.arange(tensor.rows) // tensor.format.block_of(tensor.shape)[0]
    columns = columns_of(tensor)[::length]
    blocks = np.empty((tensor.rows, count), RECORDS[dtype])
    assert blocks.itemsize == num_bytes, "records are packed"
    scales = tensor.scales.reshape(-1, tensor.scales.shape[-1])[rows][:, columns]
    codes = tensor.codes.view(np.int8) if tensor.format.code == "I8" else tensor.codes
    blocks["q"] = codes.reshape(tensor.rows, count, -1)
    blocks["d"] = scales[..., None] / np.float32(2 if tensor.format.code == "E2M1" else 1)
    if tensor.zeros is not None:
        blocks["zero"] = tensor.zeros.reshape(-1, tensor.zeros.shape[-1])[rows][:, columns, None]
    elif not dtype.startswith("F8"):
        blocks["zero"] = IMPLIED_ZERO.get(tensor.format.code, 0)
    return HostTensor(dtype, (tensor.rows, tensor.cols), blocks.reshape(-1).view(np.uint8))
