"""A GGUF model in several files, read as one.

    model-00001-of-00003.gguf   metadata, tokenizer, the first tensors     split.count 3, split.no 0
    model-00002-of-00003.gguf   more tensors                               split.count 3, split.no 1
    model-00003-of-00003.gguf                                              split.count 3, split.no 2

Any part can name the model. A file joined from parts has a split.count of 0 or 1, and is complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from octavo.errors import ModelLoadError
from octavo.kernels.tensor import HostTensor
from octavo.models.gguf import GGUFFile, read_gguf

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_MAX_PARTS = 10_000


def read_gguf_model(path: Path) -> GGUFFile:
    """The model in this file, or of which this file is a part."""
    file = read_gguf(path)
    count = _split_number(file, "count", 0)
    if count < 2:
        return replace(file, metadata=_without_split(file))
    names = part_names(path.name)
    if len(names) != count:
        raise ModelLoadError(
            f"{path} is one of {count} parts, but its name does not end in -00001-of-{count:05}.gguf, so the others "
            "cannot be found: give the parts their names back, or join them with llama-gguf-split --merge"
        )
    parts = [file if name == path.name else _read_part(path.with_name(name), path) for name in names]
    for number, part in enumerate(parts):
        _check_part(part, number, count)
    return GGUFFile(parts[0].path, _without_split(parts[0]), _joined_tensors(parts))


def part_names(name: str) -> list[str]:
    """The names of all parts of this file's model; for a single file, its own name."""
    match = _PART.fullmatch(name)
    count = int(match["count"]) if match else 0
    if match is None or not 1 <= int(match["number"]) <= count <= _MAX_PARTS:
        return [name]
    return [f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def first_parts(names: Iterable[str]) -> list[str]:
    """One name per model, in order."""
    return list(dict.fromkeys(part_names(name)[0] for name in names))


def _read_part(path: Path, of: Path) -> GGUFFile:
    if not path.is_file():
        raise ModelLoadError(f"{of} is one part of a model, and {path.name} is missing: put all parts into one folder")
    return read_gguf(path)


def _check_part(part: GGUFFile, number: int, count: int) -> None:
    found = _split_number(part, "count", 0), _split_number(part, "no", 0)
    if found != (count, number):
        raise ModelLoadError(
            f"{part.path}: split.no is {found[1]} and split.count is {found[0]}, expected are {number} and {count}: it "
            "belongs to another model, or was renamed"
        )


def _joined_tensors(parts: list[GGUFFile]) -> dict[str, HostTensor]:
    tensors: dict[str, HostTensor] = {}
    for part in parts:
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            raise ModelLoadError(f"{part.path}: tensor {min(twice)!r} is in a part before it too; download it again")
        tensors |= part.tensors
    promised = _split_number(parts[0], "tensors.count", len(tensors))
    if promised != len(tensors):
        raise ModelLoadError(
            f"{parts[0].path}: split.tensors.count is {promised}, the parts hold {len(tensors)}; download them again"
        )
    return tensors


def _split_number(file: GGUFFile, key: str, default: int) -> int:
    value = file.metadata.get(f"split.{key}", default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        shown = repr(value) if isinstance(value, (int, float, str)) else "a list"
        raise ModelLoadError(f"{file.path}: metadata key 'split.{key}' is {shown[:100]}; allowed: whole numbers from 0")
    return value


def _without_split(file: GGUFFile) -> dict[str, object]:
    return {key: value for key, value in file.metadata.items() if not key.startswith("split.")}
