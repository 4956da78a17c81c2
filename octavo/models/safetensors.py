"""safetensors reader: tensors behind a JSON header, mapped.

    header length u64 | header: {"name": {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, ...} | data

A file is not trusted: a header that does not match the data raises ModelLoadError with path and tensor. A tensor of an
unsupported type is an error only if the model needs it: exporters save counters and masks that no model uses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelLoadError
from octavo.kernels.tensor import BLOCK_FORMATS, DType, HostTensor
from octavo.models.checkpoint import IRRELEVANT_ENDINGS
from octavo.models.regular_file import map_file
from octavo.shown import shown

_DTYPES: dict[str, DType] = {
    **{"F32": "F32", "F16": "F16", "BF16": "BF16"},
    **{"F8_E4M3": "F8_E4M3", "I8": "I8", "U8": "U8", "I32": "I32", "I64": "I64"},  # parts of quantised matrices
}
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMS = 8


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """unreadable: name -> the error if a model needs that tensor."""

    tensors: dict[str, HostTensor]
    unreadable: dict[str, str]


def read_safetensors(path: Path) -> SafetensorsFile:
    """The tensors of one file, as views into it."""
    return parse_safetensors(path, map_file(path))


def parse_safetensors(path: Path, data: NDArray[np.uint8]) -> SafetensorsFile:
    """The tensors of a file's content, as views into that. path: for messages."""
    header_bytes = int.from_bytes(data[:8].tobytes(), "little")
    if data.nbytes < 8 or not 2 <= header_bytes <= min(data.nbytes - 8, _MAX_HEADER_BYTES):
        raise ModelLoadError(
            f"{path} begins with {data[:8].tobytes()!r}: it is no safetensors file, or its header is cut off; download "
            "the file again"
        )
    try:
        header = json.loads(data[8 : 8 + header_bytes].tobytes(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: the header is not valid JSON ({error}); download the file again") from None
    if not isinstance(header, dict):
        raise ModelLoadError(f"{path}: the header is not a JSON object; download the file again")
    header = {
        name: entry
        for name, entry in header.items()
        if name != "__metadata__" and not name.endswith(IRRELEVANT_ENDINGS)
    }
    content = data[8 + header_bytes :]
    spans = {name: _span(path, name, entry, content.nbytes) for name, entry in header.items()}
    _check_apart(path, spans)
    tensors, unreadable = {}, {}
    for name, entry in header.items():
        dtype = entry["dtype"]
        if dtype in _DTYPES:
            tensors[name] = HostTensor(_DTYPES[dtype], tuple(entry["shape"]), content[slice(*spans[name])])
        else:
            unreadable[name] = (
                f"{path}: tensor {shown(name)} has dtype {shown(dtype)}; "
                f"Octavo reads {', '.join(_DTYPES)} from safetensors"
            )
    return SafetensorsFile(tensors, unreadable)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"{shown(name)} appears twice")
        entries[name] = value
    return entries


def _span(path: Path, name: str, entry: Any, num_bytes: int) -> tuple[int, int]:
    """Where a tensor's bytes begin and end, after all checks of its entry."""
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise ModelLoadError(f"{where} is not described by an object; download the file again")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise ModelLoadError(f"{where} has dtype {shown(dtype)}, allowed is a type's name; download the file again")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
        raise ModelLoadError(f"{where} has shape {shown(shape)}, allowed are up to {_MAX_DIMS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= num_bytes:
        raise ModelLoadError(
            f"{where} has data_offsets {shown(offsets)}, outside {num_bytes} bytes of data; if the file is cut off, "
            "download or copy it again"
        )
    held = offsets[1] - offsets[0]
    needed = prod(shape) * BLOCK_FORMATS[_DTYPES[dtype]][1] if dtype in _DTYPES else 0
    if dtype in _DTYPES and held != needed:
        raise ModelLoadError(
            f"{where} is {dtype} of shape {shown(shape)}, {needed} bytes, but data_offsets {offsets} hold {held}"
        )
    return offsets[0], offsets[1]


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_apart(path: Path, spans: dict[str, tuple[int, int]]) -> None:
    end_of_last = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin < end_of_last:
            raise ModelLoadError(f"{path}: tensor {shown(name)} overlaps the one before it; download the file again")
        end_of_last = end
