"""GGUF reader: ggml's file of metadata and tensors, mapped and parsed in milliseconds.

    "GGUF" | version u32 | num_tensors u64 | num_keys u64
    metadata   num_keys    x  key string | type u32 | value         string: length u64 | UTF-8 bytes
    tensors    num_tensors x  name string | num_dims u32 | dims u64... (fastest first) | type u32 | offset u64
    padding to `general.alignment` (32 unless the file says otherwise)
    data       each tensor at its offset from here

Versions 2 and 3, little-endian. A file is not trusted: every length is checked against the remaining bytes
before anything is allocated, and any fault raises ModelLoadError with the path and the key or tensor.
String arrays (a vocabulary has hundreds of thousands of entries) are skipped, and decoded on demand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.tensor import DType, HostTensor, num_bytes
from octavo.models.gguf_types import SCALAR_TYPES, TENSOR_TYPES, UNSUPPORTED_TENSOR_TYPES
from octavo.models.regular_file import map_file
from octavo.shown import shown

_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_MAX_DIMS = 4
_MAX_ARRAY_DEPTH = 4
_MAX_NAME_BYTES = 65_535
_SMALLEST_KEY = 8 + 4 + 1  # an empty key, its type, a one-byte value
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # an empty name, no dims, type, offset


class StringArray:
    """An array of strings still in the file: `raw` is its bytes, each string a u64 length and UTF-8."""

    def __init__(self, raw: memoryview, count: int, label: str) -> None:
        self.raw = raw
        self._count = count
        self._label = label

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def index(self, text: str) -> int | None:
        """The text's first index, or None. Nothing is decoded."""
        raw, unpack, encoded = bytes(self.raw), struct.Struct("<Q").unpack_from, text.encode()
        needle = struct.pack("<Q", len(encoded)) + encoded
        found, position = raw.find(needle), 0
        for index in range(self._count):
            if found < position:  # the match was inside another string
                found = raw.find(needle, position)
            if found < 0:
                return None
            if found == position:
                return index
            position += 8 + unpack(raw, position)[0]
        return None

    def tolist(self) -> list[str]:
        raw, unpack, position, strings = bytes(self.raw), struct.Struct("<Q").unpack_from, 0, []
        try:
            for _ in range(self._count):
                start = position + 8
                position = start + unpack(raw, position)[0]
                strings.append(raw[start:position].decode())
        except UnicodeDecodeError as error:
            raise ModelLoadError(f"{self._label}[{len(strings)}] is not UTF-8: {error.reason}") from None
        return strings


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A parsed file. Metadata values are str, int, float, bool, numeric numpy arrays, StringArray, or lists
    (arrays of arrays); tensors are views into the mapped file, under the file's own names."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, HostTensor]


def read_gguf(path: Path) -> GGUFFile:
    """Parse a file's header; tensor data is mapped, not read."""
    data = map_file(path)
    cursor = _Cursor(data, path)
    num_tensors, num_keys = _read_counts(cursor)
    metadata = _read_metadata(cursor, num_keys)
    infos = [_read_tensor_info(cursor) for _ in range(num_tensors)]
    return GGUFFile(path, metadata, _map_tensors(cursor, infos, _alignment(cursor, metadata)))


class _Cursor:
    """A position in the file, and the name of what is read there, for error messages."""

    def __init__(self, data: NDArray[np.uint8], path: Path) -> None:
        self.data = data
        self.view = data.data
        self.path = path
        self.position = 0
        self.reading = "the header"

    @property
    def left(self) -> int:
        return len(self.view) - self.position

    def fail(self, problem: str) -> NoReturn:
        raise ModelLoadError(f"{self.path}: {self.reading} {problem}; download or convert the file again")

    def take(self, count: int) -> memoryview:
        if count > self.left:
            self.fail(f"is cut off: {count} bytes are needed at offset {self.position}, {self.left} are left")
        start = self.position
        self.position += count
        return self.view[start : self.position]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def string(self) -> str:
        raw = self.take(self.u64())
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"is not UTF-8: {error.reason}")

    def name(self) -> str:
        length = self.u64()
        if length > _MAX_NAME_BYTES:
            self.fail(f"has a name of {length} bytes, allowed are {_MAX_NAME_BYTES}")
        self.position -= 8
        return self.string()


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
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


def _read_metadata(cursor: _Cursor, num_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(num_keys):
        cursor.reading = f"metadata key number {index}"
        key = cursor.name()
        cursor.reading = f"metadata key {shown(key)}"
        if key in metadata:
            cursor.fail("appears twice")
        metadata[key] = _read_value(cursor, cursor.u32())
    return metadata


def _read_value(cursor: _Cursor, value_type: int, depth: int = 0) -> Any:
    if value_type == _STRING:
        return cursor.string()
    if value_type == _ARRAY:
        return _read_array(cursor, depth)
    if value_type not in SCALAR_TYPES:
        cursor.fail(f"has value type {value_type}, allowed are 0 to 12")
    scalar = np.dtype(SCALAR_TYPES[value_type])
    value = np.frombuffer(cursor.take(scalar.itemsize), scalar)[0]
    return float(str(value)) if value_type == _FLOAT32 else value.item()  # 1e-05, not 9.999999747378752e-06


def _read_array(cursor: _Cursor, depth: int) -> Any:
    if depth == _MAX_ARRAY_DEPTH:
        cursor.fail(f"nests arrays more than {_MAX_ARRAY_DEPTH} deep")
    item_type, count = cursor.u32(), cursor.u64()
    if item_type in SCALAR_TYPES:
        scalar = np.dtype(SCALAR_TYPES[item_type])
        raw = cursor.take(count * scalar.itemsize)
        return np.frombuffer(raw, scalar) if count else np.empty(0, scalar)
    smallest = {_STRING: 8, _ARRAY: 12}.get(item_type)
    if smallest is None:
        cursor.fail(f"is an array of value type {item_type}, allowed are 0 to 12")
    if count * smallest > cursor.left:
        cursor.fail(f"promises {count} entries, more than {cursor.left} bytes can hold")
    if item_type == _STRING:
        return _skip_strings(cursor, count)
    return [_read_array(cursor, depth + 1) for _ in range(count)]


def _skip_strings(cursor: _Cursor, count: int) -> StringArray:
    view, size, start = cursor.view, len(cursor.view), cursor.position
    unpack = struct.Struct("<Q").unpack_from
    position, last = start, size - 8
    for _ in range(count):
        if position > last:
            break
        position += 8 + unpack(view, position)[0]
    else:
        last = size
    if position > last:
        cursor.position = min(position, size)
        cursor.fail(f"is cut off inside an array of {count} strings")
    cursor.position = position
    return StringArray(view[start:position], count, f"{cursor.path}: {cursor.reading}")


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def _read_tensor_info(cursor: _Cursor) -> _TensorInfo:
    cursor.reading = "the tensor list"
    name = cursor.name()
    cursor.reading = f"tensor {shown(name)}"
    num_dims = cursor.u32()
    if not 1 <= num_dims <= _MAX_DIMS:
        cursor.fail(f"has {num_dims} dimensions, allowed are 1 to {_MAX_DIMS}")
    shape = tuple(reversed([cursor.u64() for _ in range(num_dims)]))
    type_id, offset = cursor.u32(), cursor.u64()
    if type_id in UNSUPPORTED_TENSOR_TYPES:
        raise UnsupportedModelError(
            f"{cursor.path}: tensor {shown(name)} has type {UNSUPPORTED_TENSOR_TYPES[type_id]}; "
            f"Octavo reads {', '.join(TENSOR_TYPES.values())}"
        )
    if type_id not in TENSOR_TYPES:
        cursor.fail(f"has the unknown type {type_id}")
    if not prod(shape):
        cursor.fail(f"has the empty shape {shown(list(shape))}")
    dtype = TENSOR_TYPES[type_id]
    try:
        return _TensorInfo(name, dtype, shape, offset, num_bytes(dtype, shape))
    except ValueError as error:
        cursor.fail(f"has shape {shown(list(shape))}: {error}")


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    cursor.reading = "metadata key 'general.alignment'"
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        cursor.fail(f"is {alignment!r}, allowed are powers of two up to {1 << 20}")
    return alignment


def _map_tensors(cursor: _Cursor, infos: list[_TensorInfo], alignment: int) -> dict[str, HostTensor]:
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
