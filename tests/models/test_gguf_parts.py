"""GGUF models in several files: read as one, from any part, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.config import ModelConfig
from octavo.errors import ModelLoadError
from octavo.models import hub
from octavo.models.gguf_parts import first_parts, part_names, read_gguf_model
from octavo.models.loader import open_checkpoint
from octavo.models.located import locate_tokenizer
from tests.models.gguf_files import TINY_LLAMA, tiny_llama_tensors, write_gguf
from tests.models.test_loader import FakeHub

COUNT = 3


def name_of(number: int) -> str:
    return f"tiny-{number:05}-of-{COUNT:05}.gguf"


def write_parts(folder: Path, **changes: Any) -> Path:
    """As llama-gguf-split writes them. changes: keys of the last part, without the prefix."""
    names = list(tiny_llama_tensors())
    shares: list[list[str]] = [[], names[: len(names) // 2], names[len(names) // 2 :]]
    for number, share in enumerate(shares):
        keys: dict[str, Any] = {"split.no": number, "split.count": COUNT, "split.tensors.count": len(names)}
        if number == 0:
            keys |= TINY_LLAMA
        if number == COUNT - 1:
            keys |= {f"split.{key}": value for key, value in changes.items()}
        tensors = {name: tiny_llama_tensors()[name] for name in share}
        write_gguf(folder / name_of(number + 1), "llama", keys, tensors)
    return folder / name_of(1)


@pytest.mark.parametrize("opened", [1, 3])
def test_any_part_opens_the_whole(tmp_path: Path, opened: int) -> None:
    write_parts(tmp_path)
    whole = read_gguf_model(write_gguf(tmp_path / "whole.gguf", "llama", TINY_LLAMA, tiny_llama_tensors()))
    joined = read_gguf_model(tmp_path / name_of(opened))
    assert joined.path == tmp_path / name_of(1)
    assert set(joined.metadata) == set(whole.metadata)
    assert list(joined.tensors) == list(whole.tensors)
    assert all(np.array_equal(one.data, whole.tensors[name].data) for name, one in joined.tensors.items())


def test_a_folder_of_parts_is_one_model(tmp_path: Path) -> None:
    write_parts(tmp_path)
    checkpoint = open_checkpoint(ModelConfig(model=str(tmp_path)))
    assert checkpoint.architecture.num_layers == 2
    source = locate_tokenizer(str(tmp_path / name_of(2)))
    assert not isinstance(source, Path)
    assert len(source.metadata["tokenizer.ggml.tokens"]) == 6


@pytest.mark.parametrize("name", ["owner/model", f"owner/model:{name_of(1)}"])
def test_a_model_in_parts_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_parts(tmp_path)
    monkeypatch.setattr(hub, "_hub", lambda name: FakeHub(tmp_path))
    assert open_checkpoint(ModelConfig(model=name)).architecture.num_layers == 2


@pytest.mark.parametrize("count", [0, 1])
def test_a_file_that_was_joined_again_is_whole(tmp_path: Path, count: int) -> None:
    keys = TINY_LLAMA | {"split.count": count, "split.no": 0, "split.tensors.count": 99}
    path = write_gguf(tmp_path / "joined.gguf", "llama", keys, tiny_llama_tensors())
    assert open_checkpoint(ModelConfig(model=str(path))).architecture.num_layers == 2


def lose(folder: Path) -> None:
    (folder / name_of(2)).unlink()


def repeat(folder: Path) -> None:
    write_gguf(folder / name_of(3), "llama", {"split.no": 2, "split.count": COUNT}, tiny_llama_tensors())


def rename(folder: Path) -> None:
    (folder / name_of(1)).rename(folder / "tiny.gguf")


@pytest.mark.parametrize(
    ("changes", "spoil", "message"),
    [
        ({}, lose, f"is one part of a model, and {name_of(2)} is missing: put all parts into one folder"),
        ({"no": 1}, None, f"{name_of(3)}: split.no is 1 and split.count is 3, expected are 2 and 3"),
        ({"count": 4}, None, f"{name_of(3)}: split.no is 2 and split.count is 4, expected are 2 and 3"),
        ({"no": "two"}, None, "'split.no' is 'two'; allowed: whole numbers from 0"),
        ({"count": [1]}, None, "'split.count' is a list; allowed: whole numbers from 0"),
        ({}, repeat, "is in a part before it too"),
        ({}, rename, "its name does not end in -00001-of-00003.gguf"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, Any], spoil: Callable[[Path], None] | None, message: str
) -> None:
    first = write_parts(tmp_path, **changes)
    if spoil is not None:
        spoil(tmp_path)
    with pytest.raises(ModelLoadError, match=message):
        read_gguf_model(first if first.exists() else tmp_path / "tiny.gguf")


def test_a_part_with_fewer_tensors_than_promised(tmp_path: Path) -> None:
    first = write_parts(tmp_path)
    write_gguf(tmp_path / name_of(3), "llama", {"split.no": 2, "split.count": COUNT}, {})
    with pytest.raises(ModelLoadError, match=r"split.tensors.count is \d+, the parts hold \d+; download them again"):
        read_gguf_model(first)


def test_names_of_parts() -> None:
    assert part_names("a-00002-of-00003.gguf") == [f"a-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert part_names("dir/a-00001-of-00001.gguf") == ["dir/a-00001-of-00001.gguf"]
    for whole in ("a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-99999-of-99999.gguf"):
        assert part_names(whole) == [whole]
    names = ["b.gguf", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]
    assert first_parts(names) == ["b.gguf", "a-00001-of-00002.gguf"]
