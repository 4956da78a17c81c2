"""The values in a GGUF file: numbers, strings and arrays, read one after another.

    value   type u32, then a scalar | string: length u64, UTF-8 bytes | array: type u32, count u64, entries

Every length is checked against the remaining bytes before anything is allocated. String arrays (a vocabulary has
hundreds of thousands of entries) are skipped, and decoded on demand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError

_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_MAX_ARRAY_DEPTH = 4
_MAX_NAME_BYTES = 65_535
#: scalar types by GGUF's numbers, in numpy's names
_SCALAR_TYPES: dict[int, str] = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4"},
    **{6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8", 12: "<f8"},
}


class StringArray:
    """An array of strings, not decoded yet. raw: its bytes in the file, each string a u64 length and UTF-8."""

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


class Cursor:
    """A position in the file. reading: names the entry being read, for error messages."""

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


def read_value(cursor: Cursor, value_type: int, depth: int = 0) -> Any:
    if value_type == _STRING:
        return cursor.string()
    if value_type == _ARRAY:
        return _read_array(cursor, depth)
    if value_type not in _SCALAR_TYPES:
        cursor.fail(f"has value type {value_type}, allowed are 0 to 12")
    scalar = np.dtype(_SCALAR_TYPES[value_type])
    value = np.frombuffer(cursor.take(scalar.itemsize), scalar)[0]
    return float(str(value)) if value_type == _FLOAT32 else value.item()  # 1e-05, not 9.999999747378752e-06


def _read_array(cursor: Cursor, depth: int) -> Any:
    if depth == _MAX_ARRAY_DEPTH:
        cursor.fail(f"nests arrays more than {_MAX_ARRAY_DEPTH} deep")
    item_type, count = cursor.u32(), cursor.u64()
    if item_type in _SCALAR_TYPES:
        scalar = np.dtype(_SCALAR_TYPES[item_type])
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


def _skip_strings(cursor: Cursor, count: int) -> StringArray:
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
