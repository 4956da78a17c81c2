"""safetensors reader: tensors behind a JSON header, mapped.

    header length u64 | header: {"name": {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, ...} | data

A large model comes in several files and a model.safetensors.index.json that says which tensor is where. A
file is not trusted: whatever does not fit the bytes there are raises ModelLoadError naming file and tensor.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.kernels.tensor import DType, HostTensor
from octavo.models.checkpoint import IRRELEVANT_ENDINGS
from octavo.models.json_file import read_json
from octavo.models.mapped_file import map_file

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_DTYPES: dict[str, DType] = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMS = 8


def read_folder(folder: Path) -> dict[str, HostTensor]:
    """All tensors of a model's folder, from one file or from the shards its index lists."""
    if (folder / INDEX_NAME).is_file():
        return _read_shards(folder)
    if (folder / SINGLE_NAME).is_file():
        return read_safetensors(folder / SINGLE_NAME)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return read_safetensors(files[0])
    found = f"holds {len(files)} .safetensors files and no {INDEX_NAME}" if files else "holds no .safetensors file"
    raise ModelLoadError(f"{folder} {found}; download the model again, or convert its weights to safetensors")


def _read_shards(folder: Path) -> dict[str, HostTensor]:
    index = folder / INDEX_NAME
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelLoadError(f"{index}: 'weight_map' is not a mapping of tensor to file; download it again")
    shards: dict[str, dict[str, HostTensor]] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise ModelLoadError(f"{index}: file {shard!r} is not a plain name inside the folder")
        shards[shard] = read_safetensors(folder / shard)
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise ModelLoadError(f"{folder / shard}: tensor {name!r} is missing, though {INDEX_NAME} lists it there")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def read_safetensors(path: Path) -> dict[str, HostTensor]:
    """The tensors of one file, as views into it."""
    data = map_file(path)
    header_bytes = int.from_bytes(data[:8].tobytes(), "little")
    if data.nbytes < 8 or not 2 <= header_bytes <= min(data.nbytes - 8, _MAX_HEADER_BYTES):
        raise ModelLoadError(f"{path}: the header is cut off or its length is not right; download the file again")
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
    return {
        name: HostTensor(_DTYPES[entry["dtype"]], tuple(entry["shape"]), content[slice(*spans[name])])
        for name, entry in header.items()
    }


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} appears twice")
    return entries


def _span(path: Path, name: str, entry: Any, num_bytes: int) -> tuple[int, int]:
    """Where a tensor's bytes begin and end, once everything about it is seen to be right."""
    if not isinstance(entry, dict):
        raise ModelLoadError(f"{path}: tensor {name!r} is not described by an object; download the file again")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype not in _DTYPES:
        raise UnsupportedModelError(
            f"{path}: tensor {name!r} has dtype {dtype!r}; Octavo reads {', '.join(_DTYPES)} from safetensors"
        )
    if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
        raise ModelLoadError(f"{path}: tensor {name!r} has shape {shape!r}, allowed are up to {_MAX_DIMS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= num_bytes:
        raise ModelLoadError(f"{path}: tensor {name!r} has data_offsets {offsets!r}, outside {num_bytes} bytes of data")
    needed = prod(shape) * _DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != needed:
        raise ModelLoadError(
            f"{path}: tensor {name!r} is {dtype} of shape {shape}, {needed} bytes, but data_offsets {offsets} "
            f"hold {offsets[1] - offsets[0]}"
        )
    return offsets[0], offsets[1]


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_apart(path: Path, spans: dict[str, tuple[int, int]]) -> None:
    end_of_last = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin < end_of_last:
            raise ModelLoadError(f"{path}: tensor {name!r} overlaps the one before it; download the file again")
        end_of_last = end
