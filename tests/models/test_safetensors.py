"""The safetensors reader: against the safetensors package on good files, and with clear errors on bad ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from octavo.errors import ModelLoadError
from octavo.models.regular_file import map_file, read_text, read_whole
from octavo.models.safetensors import read_safetensors
from octavo.models.weight_files import read_folder

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.arange(6, dtype=torch.bfloat16),
    "c": torch.full((2, 1, 2), 0.5, dtype=torch.float16),
}


def write(path: Path, header: Any, data: bytes = bytes(64)) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(dtype: str = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("read", [read_safetensors, map_file, read_text, read_whole])
def test_a_pointer_in_place_of_a_large_file_is_told(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ModelLoadError, match="is a Git LFS pointer in place of the file: run `git lfs pull`"):
        read(path)


def test_another_file_says_how_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("<html>404 not found</html>")
    with pytest.raises(
        ModelLoadError, match=r"begins with b'<html>40': it is no safetensors file, or its header is cut"
    ):
        read_safetensors(path)


def test_a_file_that_is_cut_off_says_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"a": entry(shape=(64,), offsets=(0, 256))})
    with pytest.raises(ModelLoadError, match=r"outside 64 bytes of data; if the file is cut off, download or copy it"):
        read_safetensors(path)


def test_reads_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    read = read_folder(tmp_path).tensors
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert read[name].shape == tuple(tensor.shape)
        assert read[name].data.tobytes() == tensor.view(torch.uint8).numpy().tobytes()
    assert [read[name].dtype for name in "abc"] == ["F32", "BF16", "F16"]


def test_shards_are_joined_by_their_index(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"], "c": TENSORS["c"]}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert list(read_folder(tmp_path).tensors) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ([], r"weight_map is \[\]; allowed: an object"),
        ({}, "'weight_map' is missing or empty"),
        ({"a": ["one.safetensors"]}, r"weight_map has \['one.safetensors'\] for 'a'; allowed: a file's name"),
        ({"a": "one\0.safetensors"}, "not a plain name"),
        ({"a": "../one.safetensors"}, "not a plain name"),
        ({"a": "three.safetensors"}, "three.safetensors cannot be read"),
        ({"z": "one.safetensors"}, "one.safetensors: tensor 'z' is missing"),
    ],
)
def test_a_wrong_index_is_named(tmp_path: Path, weight_map: Any, message: str) -> None:
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelLoadError, match=message):
        read_folder(tmp_path)


def test_a_folder_without_weights_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelLoadError, match=r"holds pytorch_model.bin, in a format .*; .*convert its weights to safe"):
        read_folder(tmp_path)


def test_buffers_that_no_model_needs_may_have_any_type(tmp_path: Path) -> None:
    masks = {"h.0.attn.bias": torch.ones(2, 2, dtype=torch.bool), "a": TENSORS["a"]}
    save_file(masks, tmp_path / "model.safetensors")
    assert list(read_folder(tmp_path).tensors) == ["a"]


BROKEN: dict[str, tuple[Any, str]] = {
    "header": (b"{}" + b" " * 10 + b"x", "not valid JSON"),
    "list": ([], "not a JSON object"),
    "deep": (b"[" * 100_000, "not valid JSON"),
    "no entry": ({"t": 3}, "'t' is not described by an object"),
    "shape": ({"t": entry(shape=[4.0])}, r"'t' has shape \[4.0\]"),
    "negative": ({"t": entry(shape=[-4])}, r"'t' has shape \[-4\]"),
    "true": ({"t": entry(shape=[True, 4])}, r"'t' has shape \[True, 4\]"),
    "dimensions": ({"t": entry(shape=[1] * 9 + [4])}, "up to 8 sizes"),
    "offsets": ({"t": entry(offsets=[0, 16, 32])}, r"data_offsets \[0, 16, 32\]"),
    "backwards": ({"t": entry(offsets=[16, 0])}, r"data_offsets \[16, 0\]"),
    "outside": ({"t": entry(shape=[2**61], offsets=[0, 2**63])}, "outside 64 bytes"),
    "size": ({"t": entry(shape=[5])}, r"F32 of shape \[5\], 20 bytes, but data_offsets \[0, 16\] hold 16"),
    "overlap": ({"t": entry(), "u": entry(offsets=[12, 28])}, "'u' overlaps"),
    "twice": (b'{"t": {}, "t": {}}', "'t' appears twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_an_error_that_names_file_and_tensor(case: str, tmp_path: Path) -> None:
    header, message = BROKEN[case]
    with pytest.raises(ModelLoadError, match=f"broken.safetensors.*{message}"):
        read_safetensors(write(tmp_path / "broken.safetensors", header))


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    read = read_safetensors(write(tmp_path / "f8.safetensors", {"t": entry("F8_E5M2", (16,))}))
    assert read.tensors == {}
    assert "f8.safetensors: tensor 't' has dtype 'F8_E5M2'; Octavo reads F32, F16, BF16" in read.unreadable["t"]


def test_a_file_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "whole.safetensors")
    content, path = (tmp_path / "whole.safetensors").read_bytes(), tmp_path / "cut.safetensors"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ModelLoadError, match=r"cut.safetensors"):
            read_safetensors(path)


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 220), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_never_do_more_than_raise(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    whole, path = tmp_path / "whole.safetensors", tmp_path / "changed.safetensors"
    if not whole.exists():
        save_file(TENSORS, whole)
    content = bytearray(whole.read_bytes())
    for position, byte in changes:
        content[position] = byte
    path.write_bytes(content)
    with suppress(ModelLoadError):
        for tensor in read_safetensors(path).tensors.values():
            assert np.asarray(tensor.data).nbytes == tensor.row_bytes * tensor.rows
