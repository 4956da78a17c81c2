"""Which of a folder's safetensors files hold the model, and all tensors in them.

    model.safetensors.index.json     lists the file of each tensor
    model.safetensors                the whole model
    *-0000I-of-0000N.safetensors     parts without an index, if all N are there
    one file of any other name       the whole model

Saving a model over another leaves the other's files behind. An index counts only if all its files exist, and a newer
model.safetensors takes precedence. A warning reports each choice: the files read, why, and those not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from octavo.errors import ModelLoadError
from octavo.kernels.tensor import HostTensor
from octavo.models.checkpoint import IRRELEVANT_ENDINGS
from octavo.models.config_file import ConfigFile, read_json
from octavo.models.regular_file import is_there
from octavo.models.safetensors import SafetensorsFile, read_safetensors
from octavo.observe.logging import LOGGER
from octavo.shown import shown, shown_names

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.safetensors")
#: copies of the model in its makers' own formats
_OTHER_FORMATS = ("consolidated*.safetensors", "adapter_model*.safetensors")
_LONGEST_NAME = 255
_PICKLED = ("*.bin", "*.pth", "*.pt", "*.ckpt")


@dataclass(frozen=True, slots=True)
class _Choice:
    """files: names inside the folder. listed: the index, tensor -> file. why: the reason for this choice."""

    files: tuple[str, ...]
    why: str
    listed: Mapping[str, str] = field(default_factory=dict)
    is_doubtful: bool = False


def read_folder(folder: Path) -> SafetensorsFile:
    """All tensors of a model's folder."""
    choice = _choose(folder)
    others = sorted(_weights(folder) - set(choice.files))
    if others or choice.is_doubtful:
        left = f"; not read: {shown_names(others)}" if others else ""
        LOGGER.warning("%s: weights are read from %s, %s%s", folder, shown_names(choice.files), choice.why, left)
    return _joined(folder, choice, {name: read_safetensors(folder / name) for name in choice.files})


def _choose(folder: Path) -> _Choice:
    if not is_there(folder / INDEX_NAME):
        return _without_index(folder)
    listed = _weight_map(folder / INDEX_NAME)
    shards = tuple(sorted(set(listed.values())))
    from_index = _Choice(shards, f"which {INDEX_NAME} lists", listed)
    missing = [shard for shard in shards if not is_there(folder / shard)]
    has_single = is_there(folder / SINGLE_NAME) and SINGLE_NAME not in shards
    if missing and not has_single:
        raise ModelLoadError(
            f"{folder / missing[0]} cannot be read: {INDEX_NAME} lists {len(missing)} files that are not there "
            f"({shown_names(missing)}); download the model again"
        )
    if missing:
        why = f"as {INDEX_NAME} lists files that are not there ({shown_names(missing)})"
        return _Choice((SINGLE_NAME,), why, is_doubtful=True)
    if has_single and _changed(folder, (SINGLE_NAME,)) > _changed(folder, (INDEX_NAME, *shards)):
        return _Choice((SINGLE_NAME,), f"which is newer than {INDEX_NAME} and the files that it lists")
    return from_index


def _changed(folder: Path, names: tuple[str, ...]) -> float:
    return max((folder / name).stat().st_mtime for name in names)


def _without_index(folder: Path) -> _Choice:
    if is_there(folder / SINGLE_NAME):
        return _Choice((SINGLE_NAME,), "the file with a whole model's name")
    names = _weights(folder)
    if len(names) == 1 and not _PART.fullmatch(next(iter(names))):
        return _Choice(tuple(names), "the only one")
    parts = sorted(name for name in names if _PART.fullmatch(name))
    if not parts:
        raise ModelLoadError(f"{folder} {_nothing_to_read(folder, names)}")
    first = _PART.fullmatch(parts[0])
    assert first is not None, "it was chosen by that pattern"
    count = int(first["count"])
    whole = {f"{first['stem']}-{part:05}-of-{count:05}.safetensors" for part in range(1, count + 1)}
    if missing := sorted(whole - set(parts)):
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} of {count} parts ({shown_names(missing)}); download the model again"
        )
    return _Choice(tuple(sorted(whole)), f"all {count} parts")


def _weights(folder: Path) -> set[str]:
    others = {path.name for pattern in _OTHER_FORMATS for path in folder.glob(pattern)}
    return {path.name for path in folder.glob("*.safetensors")} - others


def _nothing_to_read(folder: Path, names: set[str]) -> str:
    cure = "download the model again, or convert its weights to safetensors"
    if names:
        return f"holds {len(names)} .safetensors files ({shown_names(sorted(names))}) and no {INDEX_NAME}; {cure}"
    others = sorted(path.name for pattern in (*_OTHER_FORMATS, *_PICKLED) for path in folder.glob(pattern))
    found = f"; it holds {shown_names(others)}, in a format that Octavo does not read" if others else ""
    return f"holds no .safetensors file of a model{found}; {cure}"


def _weight_map(index: Path) -> dict[str, str]:
    listed = ConfigFile(index, read_json(index)).inside("weight_map").values
    if not listed:
        raise ModelLoadError(f"{index}: 'weight_map' is missing or empty; download it again")
    for tensor, shard in listed.items():
        if not isinstance(shard, str):
            raise ModelLoadError(f"{index}: weight_map has {shown(shard)} for {shown(tensor)}; allowed: a file's name")
        if Path(shard).name != shard or "\0" in shard or len(shard) > _LONGEST_NAME:
            raise ModelLoadError(f"{index}: file {shown(shard)} is not a plain name inside the folder")
    return listed


def _joined(folder: Path, choice: _Choice, files: Mapping[str, SafetensorsFile]) -> SafetensorsFile:
    """The tensors of all files. For a tensor in two files, the index decides."""
    for name, shard in choice.listed.items():
        file = files[shard]
        if name not in file.tensors and name not in file.unreadable and not name.endswith(IRRELEVANT_ENDINGS):
            raise ModelLoadError(
                f"{folder / shard}: tensor {shown(name)} is missing, though {INDEX_NAME} lists it there"
            )
    tensors: dict[str, HostTensor] = {}
    unreadable: dict[str, str] = {}
    for shard, file in files.items():
        for name, tensor in file.tensors.items():
            if choice.listed.get(name, shard) != shard:
                continue
            if name in tensors:
                raise ModelLoadError(f"{folder / shard}: tensor {shown(name)} is in another file, too")
            tensors[name] = tensor
        unreadable |= file.unreadable
    return SafetensorsFile(tensors, {name: why for name, why in unreadable.items() if name not in tensors})
