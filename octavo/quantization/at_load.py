"""A dense checkpoint quantised as it is loaded, one matrix at a time: `quantization=fp8|int8|int4`.

    fp8    F8_E4M3, a scale per output                 largest magnitude / 448
    int8   I8, a scale per output                      largest magnitude / 127
    int4   U4 in groups of 128, or 64 or 32 where 128 does not divide the inputs: the end farther from zero / -8

A scale is float32. Of int4 it is a bfloat16 number, and codes are chosen for it as it is rounded: products of many rows
make numbers of such codes in fewer steps (csrc/cuda/code_numbers.cuh). A rank quantises its own part. Dummy weights of
a quantised checkpoint are made in the same way, in the checkpoint's format.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError, ModelLoadError
from octavo.kernels.parameters import Scheme, Shape
from octavo.kernels.reference.dequantize import convert, dequantize
from octavo.kernels.reference.scaled import dequantize_scaled, pack_nibbles
from octavo.kernels.scaled import IMPLIED_ZERO, Code, FloatArray, ScaledFormat, ScaledTensor, numbers_of
from octavo.kernels.tensor import BLOCK_FORMATS, Cut, DType, HostTensor, RandomTensor, StoredTensor, from_array
from octavo.quantization.described import KVCodes, Quantization, is_in_layer, is_router

FORMATS: dict[str, ScaledFormat] = {
    "fp8": ScaledFormat("F8_E4M3", (1, 0)),
    "int8": ScaledFormat("I8", (1, 0)),
    "int4": ScaledFormat("U4", (1, 128)),
}
_SMALLER = (64, 32)


@dataclass(frozen=True, slots=True)
class QuantisedAtLoad:
    """A dense matrix in the file, a ScaledTensor in memory."""

    format: ScaledFormat
    method: str

    @property
    def name(self) -> str:
        return f"{self.method} ({self.format.label})"

    @property
    def block_len(self) -> int:
        return self.format.block[1] or (8 if self.format.is_nibbles else 1)

    def tensors(self, name: str, shape: Shape) -> dict[str, Shape]:
        return {name: shape}

    def part(self, sources: tuple[StoredTensor, ...], cut: Cut) -> tuple[StoredTensor, ...]:
        return tuple(source.part(cut) for source in sources)

    def compact(self, sources: tuple[StoredTensor, ...]) -> ScaledTensor:
        (source,) = sources
        assert BLOCK_FORMATS[source.dtype][0] == 1, "open_checkpoint lets only dense matrices through"
        matrix = dequantize(source.read())
        if not np.isfinite(matrix).all():
            raise ModelLoadError(f"{source.label} has numbers that are not finite, which {self.method} cannot hold")
        return quantised(matrix, self.format)

    def dense(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        """The quantised numbers. A matrix that the device draws at random stays as it is."""
        drawn = sources[0].read()
        return drawn if isinstance(drawn, RandomTensor) else from_array(dequantize_scaled(self.compact(sources)))


@dataclass(frozen=True, slots=True)
class AtLoad:
    """Every matrix of a layer, in this format, or, with `of`, in those of a quantised checkpoint."""

    format: ScaledFormat
    method: str
    of: Quantization | None = None
    kv_cache: KVCodes | None = None

    def scheme_of(self, name: str, shape: Shape) -> Scheme | None:
        if self.of is not None:
            scheme = None if is_router(name) else self.of.scheme_of(name, shape)
            return None if scheme is None or scheme.format is None else QuantisedAtLoad(scheme.format, "dummy")
        if not is_in_layer(name, shape) or is_router(name):
            return None
        return QuantisedAtLoad(_fitting(self.format, name, shape), f"{self.method}, quantised at load")


def at_load(method: str) -> AtLoad:
    """method: a key of FORMATS."""
    return AtLoad(FORMATS[method], method)


def as_dummy(stated: Quantization) -> AtLoad:
    """Random weights in the formats of a quantised checkpoint."""
    return AtLoad(FORMATS["int8"], stated.method, stated)


def quantised(matrix: FloatArray, form: ScaledFormat, scale_dtype: DType | None = None) -> ScaledTensor:
    """The nearest codes under scales by each block's largest magnitude, rounded to the type they will be stored in.
    None: as at load, bfloat16 of U4 and float32 of others."""
    scale_dtype = scale_dtype or ("BF16" if form.code == "U4" else "F32")
    per = form.block_of(matrix.shape)
    counts = form.blocks_of(matrix.shape)
    lead, (rows, cols) = matrix.shape[:-2], matrix.shape[-2:]
    padded = np.zeros((*lead, counts[-2] * per[0], counts[-1] * per[1]), np.float32)
    padded[..., :rows, :cols] = matrix
    blocks = padded.reshape(*lead, counts[-2], per[0], counts[-1], per[1])
    largest, smallest = blocks.max(axis=(-3, -1)), blocks.min(axis=(-3, -1))
    scales = dequantize(convert(from_array(_scales(form, largest, smallest)), scale_dtype))
    divisors = scales.copy()
    divisors[scales == 0] = 1
    steps: Any = blocks / divisors[..., :, None, :, None]
    zeros = _zeros(form, smallest / divisors) if form.has_zeros else None
    if zeros is not None:
        steps += (zeros - IMPLIED_ZERO.get(form.code, 0))[..., :, None, :, None]
    codes = nearest_codes(form.code, steps).reshape(padded.shape)[..., :rows, :cols]
    packed = pack_nibbles(codes) if form.is_nibbles else np.ascontiguousarray(codes)
    groups = (np.arange(cols) // per[1]).astype(np.int32) if form.is_sorted else None
    return ScaledTensor(form, matrix.shape, packed, scales, scale_dtype, zeros, groups)


def _scales(form: ScaledFormat, largest: FloatArray, smallest: FloatArray) -> FloatArray:
    code = form.code
    if code == "U4" and form.has_zeros:  # sixteen codes from end to end, of which one is zero
        return ((np.maximum(largest, 0) - np.minimum(smallest, 0)) / np.float32(15)).astype(np.float32)
    if code == "U4":  # codes have one number more below zero: the farther end gets it
        farther = np.where(largest > -smallest, largest, smallest)
        return (farther / np.float32(-8)).astype(np.float32)
    limits = {"F8_E4M3": 448.0, "I8": 127.0, "E2M1": 6.0, "NF4": 1.0, "IQ4_NL": 127.0}
    scales = (np.maximum(largest, -smallest) / limits[code]).astype(np.float32)
    if code == "E2M1":  # powers of two
        return np.exp2(np.ceil(np.log2(np.maximum(scales, 1e-30)))).astype(np.float32)
    return scales


def _zeros(form: ScaledFormat, lowest: FloatArray) -> NDArray[np.int16]:
    """lowest: each block's smallest number in steps of its scale."""
    if form.code != "U4":
        return np.zeros(lowest.shape, np.int16)
    return np.clip(np.rint(-np.minimum(lowest, 0)), 0, 15).astype(np.int16)


def nearest_codes(code: Code, numbers: FloatArray) -> NDArray[np.uint8]:
    """The codes of the nearest numbers, of two as near the one with the even code, as IEEE rounds."""
    if code == "I8":
        whole: NDArray[np.int8] = np.clip(np.rint(numbers), -127, 127).astype(np.int8)
        return whole.view(np.uint8)
    if code == "U4":
        nibbles: NDArray[np.uint8] = np.clip(np.rint(numbers) + 8, 0, 15).astype(np.uint8)
        return nibbles
    if code == "F8_E4M3":
        return _small_floats(numbers)
    known = numbers_of(code)
    order = np.argsort(known, kind="stable")[: int(np.isfinite(known).sum())]
    ordered = known[order]
    upper = np.clip(np.searchsorted(ordered, numbers), 1, len(ordered) - 1)
    below, above = numbers - ordered[upper - 1], ordered[upper] - numbers
    takes_lower = (below < above) | ((below == above) & (order[upper - 1] % 2 == 0))
    nearest: NDArray[np.int64] = np.where(takes_lower, upper - 1, upper)
    return np.take(order, nearest).astype(np.uint8)


def _small_floats(numbers: FloatArray) -> NDArray[np.uint8]:
    """e4m3: the float32's bits but for 20 of its mantissa, and another bias; below 2^-6 multiples of 2^-9."""
    bits = numbers.view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    rounded = (magnitude + np.uint32(0x7FFFF) + (magnitude >> 20 & 1)) >> 20
    normal = np.clip(rounded.astype(np.int32) - ((127 - 7) << 3), 0, 0x7E)
    small = np.rint(np.abs(numbers) * np.float32(512))
    codes = np.where(np.abs(numbers) < 2**-6, small, normal).astype(np.uint8)
    return codes | (bits >> 24 & 0x80).astype(np.uint8)


def _fitting(form: ScaledFormat, name: str, shape: Shape) -> ScaledFormat:
    group = form.block[1]
    if group == 0 or shape[-1] % group == 0:
        return form
    smaller = next((size for size in _SMALLER if shape[-1] % size == 0), None)
    if smaller is None:
        raise ConfigError(
            f"quantization is 'int4', but tensor {name!r} has {shape[-1]} inputs, which groups of 32 do not divide: "
            "set quantization to 'int8' or 'fp8'"
        )
    return replace(form, block=(1, smaller))
