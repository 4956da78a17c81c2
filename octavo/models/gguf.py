"""GGUF reader: ggml's file of metadata and tensors, mapped and parsed in milliseconds.

    "GGUF" | version u32 | num_tensors u64 | num_keys u64
    metadata   num_keys    x  key string | type u32 | value
    tensors    num_tensors x  name string | num_dims u32 | dims u64... (fastest first) | type u32 | offset u64
    padding to `general.alignment` (default 32)
    data       each tensor at its offset from here

Versions 2 and 3, little-endian. A file is not trusted: any fault raises ModelLoadError with the path and the key or
tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.tensor import DType, HostTensor, num_bytes
from octavo.models.gguf_values import Cursor, read_value
from octavo.models.regular_file import map_file
from octavo.shown import shown

_MAX_DIMS = 4
_SMALLEST_KEY = 8 + 4 + 1  # an empty key, its type, a one-byte value
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # an empty name, no dims, type, offset
_TENSOR_TYPES: dict[int, DType] = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1"},
    **{8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 30: "BF16", 39: "MXFP4"},
}
#: ggml's other types, so that the error can name them
_UNSUPPORTED_TYPES: dict[int, str] = {
    **{9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"},
    **{21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"},
    **{29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4", 41: "Q1_0"},
}


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A parsed file. Metadata values are str, int, float, bool, numeric numpy arrays, StringArray, or lists
    (arrays of arrays). Tensors are views into the mapped file, under the file's own names."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, HostTensor]


def read_gguf(path: Path) -> GGUFFile:
    """Parse a file's header; tensor data is mapped, not read."""
    data = map_file(path)
    cursor = Cursor(data, path)
    num_tensors, num_keys = _read_counts(cursor)
    metadata = _read_metadata(cursor, num_keys)
    infos = [_read_tensor_info(cursor) for _ in range(num_tensors)]
    return GGUFFile(path, metadata, _map_tensors(cursor, infos, _alignment(cursor, metadata)))


def _read_counts(cursor: Cursor) -> tuple[int, int]:
    if bytes(cursor.view[:4]) != b"GGUF":
        raise ModelLoadError(f"{cursor.path} is not a GGUF file: it begins with {bytes(cursor.view[:4])!r}")
    cursor.position = 4
    version = cursor.u32()
    if version in (2 << 24, 3 << 24):
        raise UnsupportedModelError(f"{cursor.path} is a big-endian GGUF file; Octavo reads little-endian ones")
    if version not in (2, 3):
        raise UnsupportedModelError(f"{cursor.path} is GGUF version {version}; Octavo reads versions 2 and 3")
    num_tensors, num_keys = cursor.u64(), cursor.u64()
    if num_keys * _SMALLEST_KEY + num_tensors * _SMALLEST_TENSOR > cursor.left:
        cursor.fail(f"promises {num_keys} keys and {num_tensors} tensors, more than {cursor.left} bytes can hold")
    return num_tensors, num_keys


def _read_metadata(cursor: Cursor, num_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(num_keys):
        cursor.reading = f"metadata key number {index}"
        key = cursor.name()
        cursor.reading = f"metadata key {shown(key)}"
        if key in metadata:
            cursor.fail("appears twice")
        metadata[key] = read_value(cursor, cursor.u32())
    return metadata


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def _read_tensor_info(cursor: Cursor) -> _TensorInfo:
    cursor.reading = "the tensor list"
    name = cursor.name()
    cursor.reading = f"tensor {shown(name)}"
    num_dims = cursor.u32()
    if not 1 <= num_dims <= _MAX_DIMS:
        cursor.fail(f"has {num_dims} dimensions, allowed are 1 to {_MAX_DIMS}")
    shape = tuple(reversed([cursor.u64() for _ in range(num_dims)]))
    type_id, offset = cursor.u32(), cursor.u64()
    if type_id in _UNSUPPORTED_TYPES:
        raise UnsupportedModelError(
            f"{cursor.path}: tensor {shown(name)} has type {_UNSUPPORTED_TYPES[type_id]}; "
            f"Octavo reads {', '.join(_TENSOR_TYPES.values())}: take another file of the model, such as its Q4_K_M"
        )
    if type_id not in _TENSOR_TYPES:
        cursor.fail(f"has the unknown type {type_id}")
    if not prod(shape):
        cursor.fail(f"has the empty shape {shown(list(shape))}")
    dtype = _TENSOR_TYPES[type_id]
    try:
        return _TensorInfo(name, dtype, shape, offset, num_bytes(dtype, shape))
    except ValueError as error:
        cursor.fail(f"has shape {shown(list(shape))}: {error}")


def _alignment(cursor: Cursor, metadata: dict[str, Any]) -> int:
    cursor.reading = "metadata key 'general.alignment'"
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        cursor.fail(f"is {alignment!r}, allowed are powers of two up to {1 << 20}")
    return alignment


def _map_tensors(cursor: Cursor, infos: list[_TensorInfo], alignment: int) -> dict[str, HostTensor]:
    """Checked views of the data section: aligned, inside the file, disjoint, with unique names."""
    data_start = -(-cursor.position // alignment) * alignment
    data_size = len(cursor.view) - data_start
    end_of_last = 0
    for info in sorted(infos, key=lambda info: info.offset):
        cursor.reading = f"tensor {shown(info.name)}"
        if info.offset % alignment:
            cursor.fail(f"is at offset {info.offset}, not a multiple of the alignment {alignment}")
        if info.offset < end_of_last:
            cursor.fail(f"at offset {info.offset} overlaps the tensor before it, which ends at {end_of_last}")
        end_of_last = info.offset + info.num_bytes
        if end_of_last > data_size:
            cursor.fail(f"is cut off: its data ends at {end_of_last}, the file's at {max(data_size, 0)}")
    tensors: dict[str, HostTensor] = {}
    for info in infos:
        if info.name in tensors:
            cursor.reading = f"tensor {shown(info.name)}"
            cursor.fail("appears twice")
        start = data_start + info.offset
        tensors[info.name] = HostTensor(info.dtype, info.shape, cursor.data[start : start + info.num_bytes])
    return tensors
