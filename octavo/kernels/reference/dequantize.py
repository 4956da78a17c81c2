"""Weights as numbers: every file format to float32, and float32 to the dense formats.

A block format stores 32 or 256 elements as small integers and a few float16 scales:

    Q4_0  d * (q - 8)        Q5_0  d * (q - 16)       Q8_0  d * q
    Q4_1  d * q + m          Q5_1  d * q + m
    Q4_K, Q5_K  (d * scale) * q - (d_min * min)       8 runs of 32, a 6-bit scale and min each
    Q6_K        (d * scale) * (q - 32)                16 runs of 16, an 8-bit scale each
    IQ4_NL      d * number of q                       one of sixteen whole numbers
    MXFP4       d * number of q                       d is a power of two, its exponent a byte; floats of 4 bits
    I8, U4      d * (q - zero)                        float32 d, int8 zero; of two nibbles the even column's is low
    F8          d * number of q                       float32 d, a float of 8 bits (e4m3)

The Q formats are ggml's, and so is the order of the float32 operations: results agree bit for bit. This is the
reference, in numpy, so that weights can be converted at load without torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.parameters import Parameter
from octavo.kernels.scaled import numbers_of
from octavo.kernels.tensor import BLOCK_FORMATS, DType, HostTensor, num_bytes

FloatArray = NDArray[np.float32]
Blocks = NDArray[np.void]  # structured: one record a block

_CHUNK_ELEMENTS = 1 << 18  # converted at once: they fit in a core's cache

_FIELDS: dict[DType, list[tuple[str, str, int]]] = {
    "Q4_0": [("d", "<f2", 1), ("q", "u1", 16)],
    "Q4_1": [("d", "<f2", 1), ("m", "<f2", 1), ("q", "u1", 16)],
    "Q5_0": [("d", "<f2", 1), ("high", "<u4", 1), ("q", "u1", 16)],
    "Q5_1": [("d", "<f2", 1), ("m", "<f2", 1), ("high", "<u4", 1), ("q", "u1", 16)],
    "Q8_0": [("d", "<f2", 1), ("q", "i1", 32)],
    "Q4_K": [("d", "<f2", 1), ("m", "<f2", 1), ("scales", "u1", 12), ("q", "u1", 128)],
    "Q5_K": [("d", "<f2", 1), ("m", "<f2", 1), ("scales", "u1", 12), ("high", "u1", 32), ("q", "u1", 128)],
    "Q6_K": [("q", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", "<f2", 1)],
    "IQ4_NL": [("d", "<f2", 1), ("q", "u1", 16)],
    "MXFP4": [("e", "u1", 1), ("q", "u1", 16)],
    "I8_32": [("d", "<f4", 1), ("zero", "i1", 1), ("q", "i1", 32)],
    "I8_128": [("d", "<f4", 1), ("zero", "i1", 1), ("q", "i1", 128)],
    "U4_32": [("d", "<f4", 1), ("zero", "i1", 1), ("q", "u1", 16)],
    "U4_128": [("d", "<f4", 1), ("zero", "i1", 1), ("q", "u1", 64)],
    "F8_32": [("d", "<f4", 1), ("q", "u1", 32)],
    "F8_128": [("d", "<f4", 1), ("q", "u1", 128)],
    "E2M1_32": [("d", "<f4", 1), ("zero", "i1", 1), ("q", "u1", 16)],
}
RECORDS = {
    dtype: np.dtype([(name, kind, (count,)) for name, kind, count in fields]) for dtype, fields in _FIELDS.items()
}


def dequantize(tensor: HostTensor) -> FloatArray:
    """The elements as float32 in the tensor's shape; a read-only view if the file stores float32."""
    if tensor.is_dense:
        return _widen(tensor).reshape(tensor.shape)
    block_len, _ = BLOCK_FORMATS[tensor.dtype]
    blocks = tensor.data.view(RECORDS[tensor.dtype])
    decoded = np.empty((len(blocks), block_len), np.float32)
    step = _CHUNK_ELEMENTS // block_len
    for start in range(0, len(blocks), step):
        _DECODERS[tensor.dtype](blocks[start : start + step], decoded[start : start + step])
    return decoded.reshape(tensor.shape)


def values(parameter: Parameter) -> FloatArray:
    """A parameter's numbers, read now."""
    return dequantize(parameter.dense())


def convert(tensor: HostTensor, dtype: DType) -> HostTensor:
    """The tensor in a dense format, rounded to nearest even, or the tensor itself if it has that format. Raises
    OverflowError if a finite value does not fit float16."""
    if tensor.dtype == dtype:
        return tensor
    data = np.empty(num_bytes(dtype, tensor.shape), np.uint8)
    rows_at_once = max(1, _CHUNK_ELEMENTS // tensor.cols)
    out = data.reshape(tensor.rows, -1)
    for start in range(0, tensor.rows, rows_at_once):
        rows = tensor.row_data[start : start + rows_at_once]
        part = dequantize(HostTensor(tensor.dtype, (len(rows), tensor.cols), rows.reshape(-1)))
        out[start : start + rows_at_once] = _NARROW[dtype](part.reshape(-1)).reshape(len(rows), -1)
    return HostTensor(dtype, tensor.shape, data)


def _widen(tensor: HostTensor) -> FloatArray:
    """Dense elements as flat float32; a bfloat16 is the upper half of a float32."""
    if tensor.dtype == "F32":
        return tensor.data.view(np.float32)
    if tensor.dtype == "F16":
        return tensor.data.view(np.float16).astype(np.float32)
    widened = np.zeros((tensor.data.nbytes // 2, 2), np.uint16)
    widened[:, 1] = tensor.data.view(np.uint16)
    return widened.reshape(-1).view(np.float32)


def _narrow_to_float32(values: FloatArray) -> NDArray[np.uint8]:
    return values.view(np.uint8)


def _narrow_to_float16(values: FloatArray) -> NDArray[np.uint8]:
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all() and np.isfinite(values[~np.isfinite(halves)]).any():
        raise OverflowError(f"{np.abs(values[np.isfinite(values)]).max():g} does not fit float16, whose limit is 65504")
    return halves.view(np.uint8)


def _narrow_to_bfloat16(values: FloatArray) -> NDArray[np.uint8]:
    bits = values.view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    is_nan = np.isnan(values)
    if is_nan.any():  # rounding up could carry a NaN into infinity
        rounded[is_nan] = 0x7FC0
    return rounded.view(np.uint8)


_NARROW: dict[DType, Callable[[FloatArray], NDArray[np.uint8]]] = {
    "F32": _narrow_to_float32,
    "F16": _narrow_to_float16,
    "BF16": _narrow_to_bfloat16,
}


def _q4_0(blocks: Blocks, out: FloatArray) -> None:
    d, q = blocks["d"].astype(np.float32), blocks["q"]
    np.multiply((q & 15).view(np.int8) - np.int8(8), d, out=out[:, :16])
    np.multiply((q >> 4).view(np.int8) - np.int8(8), d, out=out[:, 16:])


def _q4_1(blocks: Blocks, out: FloatArray) -> None:
    d, q = blocks["d"].astype(np.float32), blocks["q"]
    np.multiply(q & 15, d, out=out[:, :16])
    np.multiply(q >> 4, d, out=out[:, 16:])
    out += blocks["m"].astype(np.float32)


def _q5_0(blocks: Blocks, out: FloatArray) -> None:
    np.multiply(five_bits(blocks).view(np.int8) - np.int8(16), blocks["d"].astype(np.float32), out=out)


def _q5_1(blocks: Blocks, out: FloatArray) -> None:
    np.multiply(five_bits(blocks), blocks["d"].astype(np.float32), out=out)
    out += blocks["m"].astype(np.float32)


def five_bits(blocks: Blocks) -> NDArray[np.uint8]:
    """Nibbles as in the four-bit formats, the fifth bits of the 32 elements in one word."""
    high = np.unpackbits(blocks["high"].view(np.uint8), axis=-1, bitorder="little")
    return halves(blocks) | (high << np.uint8(4))


def _q8_0(blocks: Blocks, out: FloatArray) -> None:
    np.multiply(blocks["q"], blocks["d"].astype(np.float32), out=out)


def _q4_k(blocks: Blocks, out: FloatArray) -> None:
    _scale_and_shift(blocks, nibble_runs(blocks), out)


def _q5_k(blocks: Blocks, out: FloatArray) -> None:
    _scale_and_shift(blocks, five_bit_runs(blocks), out)


def five_bit_runs(blocks: Blocks) -> NDArray[np.uint8]:
    """[n, 8, 32]: bit j of byte l is the fifth bit of element l of run j."""
    fifth = (blocks["high"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    runs: NDArray[np.uint8] = nibble_runs(blocks) | (fifth << np.uint8(4))
    return runs


def nibble_runs(blocks: Blocks) -> NDArray[np.uint8]:
    """[n, 8, 32]: 32 bytes hold run 2i in their low nibbles and run 2i+1 in their high ones."""
    quads = blocks["q"].reshape(-1, 4, 1, 32)
    return np.concatenate([quads & 15, quads >> 4], axis=2).reshape(-1, 8, 32)


def _scale_and_shift(blocks: Blocks, q: NDArray[np.uint8], out: FloatArray) -> None:
    scales, mins = six_bit_scales(blocks["scales"])
    runs = out.reshape(-1, 8, 32)
    np.multiply(q, (blocks["d"].astype(np.float32) * scales)[:, :, None], out=runs)
    runs -= (blocks["m"].astype(np.float32) * mins)[:, :, None]


def six_bit_scales(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """12 bytes: 4 of scales, 4 of mins, 4 with a nibble of each. The first eight's top bits complete the nibbles."""
    scale, low, both = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([scale & 63, (both & 15) | (scale >> 6 << 4)], axis=-1)
    mins = np.concatenate([low & 63, (both >> 4) | (low >> 6 << 4)], axis=-1)
    return scales, mins


def _q6_k(blocks: Blocks, out: FloatArray) -> None:
    scales = blocks["d"].astype(np.float32) * blocks["scales"]
    np.multiply(six_bits(blocks).reshape(-1, 16, 16), scales[:, :, None], out=out.reshape(-1, 16, 16))


def six_bits(blocks: Blocks) -> NDArray[np.int8]:
    """Two halves of 128 elements: four runs of 32 from 64 bytes of nibbles and 32 bytes of two-bit high parts."""
    nibbles = blocks["q"].reshape(-1, 2, 1, 64)
    low = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(-1, 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = (blocks["high"].reshape(-1, 2, 1, 32) >> shifts) & 3
    codes: NDArray[np.int8] = (low | (high << 4)).view(np.int8) - np.int8(32)
    return codes


def _iq4_nl(blocks: Blocks, out: FloatArray) -> None:
    np.multiply(numbers_of("IQ4_NL")[halves(blocks)], blocks["d"].astype(np.float32), out=out)


def _mxfp4(blocks: Blocks, out: FloatArray) -> None:
    """Twice each number, which is whole, at half the scale: no product overflows before it must."""
    half_of_scale = np.ldexp(np.float32(1), blocks["e"].astype(np.int32) - 128)
    np.multiply(_doubled()[halves(blocks)], half_of_scale, out=out)


def halves(blocks: Blocks) -> NDArray[np.uint8]:
    """Nibbles: elements 0 to 15 are the bytes' low halves, 16 to 31 their high ones."""
    return np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=-1)


def _i8(blocks: Blocks, out: FloatArray) -> None:
    np.multiply(blocks["q"].astype(np.int16) - blocks["zero"], blocks["d"], out=out)


def _u4(blocks: Blocks, out: FloatArray) -> None:
    np.multiply(_nibbles(blocks).astype(np.int16) - blocks["zero"], blocks["d"], out=out)


def _e2m1(blocks: Blocks, out: FloatArray) -> None:
    """A block's unit is half of its scale, so that all numbers are whole."""
    np.multiply(_doubled()[_nibbles(blocks)] - blocks["zero"], blocks["d"], out=out)


def _doubled() -> NDArray[np.int16]:
    return (2 * numbers_of("E2M1")).astype(np.int16)


def _nibbles(blocks: Blocks) -> NDArray[np.uint8]:
    return np.stack([blocks["q"] & 15, blocks["q"] >> 4], axis=-1).reshape(len(blocks), -1)


def _f8(blocks: Blocks, out: FloatArray) -> None:
    np.multiply(numbers_of("F8_E4M3")[blocks["q"]], blocks["d"], out=out)


_DECODERS: dict[DType, Callable[[Blocks, FloatArray], None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "MXFP4": _mxfp4,
    "I8_32": _i8,
    "I8_128": _i8,
    "U4_32": _u4,
    "U4_128": _u4,
    "F8_32": _f8,
    "F8_128": _f8,
    "E2M1_32": _e2m1,
}
