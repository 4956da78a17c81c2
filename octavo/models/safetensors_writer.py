"""safetensors writer: tensors go into their files one after another, so that one is in memory at a time.

Their names, types and shapes are known before their numbers, so a file's header is written first; the format is in
`safetensors.py`. A model of more than one file gets an index, as Hugging Face's library writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from octavo.kernels.parameters import Shape
from octavo.kernels.tensor import DType, HostTensor, num_bytes
from octavo.models.weight_files import INDEX_NAME, SINGLE_NAME

#: a file of Hugging Face's library
LARGEST_FILE_BYTES = 5_000_000_000

Layout = Mapping[str, tuple[DType, Shape]]


class SafetensorsWriter:
    """layout: all tensors, in the order in which `write` gets them. A context: leaving it closes the files."""

    def __init__(self, folder: Path, layout: Layout, largest_file: int = LARGEST_FILE_BYTES) -> None:
        self._files = _split(layout, largest_file)
        self._folder = folder
        self._layout = layout
        self._open: BinaryIO | None = None
        self._left = [(name, tensor) for name, tensors in self._files.items() for tensor in tensors]
        self._stack = ExitStack()

    def __enter__(self) -> SafetensorsWriter:
        if len(self._files) > 1:
            where = {tensor: name for name, tensors in self._files.items() for tensor in tensors}
            index = {"metadata": {"total_size": total_bytes(self._layout)}, "weight_map": where}
            (self._folder / INDEX_NAME).write_text(json.dumps(index, indent=2))
        return self

    def write(self, name: str, tensor: HostTensor) -> None:
        file_name, expected = self._left.pop(0)
        assert name == expected, f"tensor {name} was written when {expected} was due"
        assert (tensor.dtype, tensor.shape) == self._layout[name], f"tensor {name} is not as its layout says"
        if self._files[file_name][0] == name:
            self._stack.close()
            self._open = self._stack.enter_context((self._folder / file_name).open("wb"))
            self._open.write(_header({one: self._layout[one] for one in self._files[file_name]}))
        assert self._open is not None, "a file begins with its first tensor"
        self._open.write(tensor.data.data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        assert kind is not None or not self._left, f"{len(self._left)} tensors were not written"


def total_bytes(layout: Layout) -> int:
    return sum(num_bytes(*entry) for entry in layout.values())


def _split(layout: Layout, largest_file: int) -> dict[str, list[str]]:
    """The tensors of each file, in order; a file has at least one."""
    files: list[list[str]] = [[]]
    filled = 0
    for name, entry in layout.items():
        size = num_bytes(*entry)
        if files[-1] and filled + size > largest_file:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    if len(files) == 1:
        return {SINGLE_NAME: files[0]}
    return {f"model-{number:05}-of-{len(files):05}.safetensors": names for number, names in enumerate(files, 1)}


def _header(layout: Layout) -> bytes:
    """The length, and JSON padded to a multiple of 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, (dtype, shape) in layout.items():
        end = begin + num_bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
