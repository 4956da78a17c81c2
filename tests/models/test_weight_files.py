"""Real folders: which files are the model, and the message about the others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from octavo.errors import ModelLoadError
from octavo.models.weight_files import INDEX_NAME, SINGLE_NAME, read_folder

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def save(path: Path, value: float, *names: str) -> None:
    save_file({name: torch.full((2,), value) for name in names}, path)


def write_index(folder: Path, **weight_map: str) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def make_sharded(folder: Path, value: float = 1.0) -> None:
    save(folder / SHARDS[0], value, "a")
    save(folder / SHARDS[1], value, "b")
    write_index(folder, a=SHARDS[0], b=SHARDS[1])


def set_age(path: Path, seconds: float) -> None:
    os.utime(path, (1_000_000_000 - seconds,) * 2)


def values(folder: Path) -> dict[str, float]:
    return {name: float(tensor.data.view("f4")[0]) for name, tensor in read_folder(folder).tensors.items()}


@pytest.mark.parametrize(("age_of_single", "expected"), [(0, 2.0), (100, 1.0), (500, 1.0)])
def test_of_two_whole_models_the_newer_is_taken_aloud(
    tmp_path: Path, age_of_single: int, expected: float, caplog: pytest.LogCaptureFixture
) -> None:
    make_sharded(tmp_path)
    save(tmp_path / SINGLE_NAME, 2.0, "a", "b")
    for path in tmp_path.iterdir():
        set_age(path, 100)
    set_age(tmp_path / SINGLE_NAME, age_of_single)
    assert values(tmp_path) == {"a": expected, "b": expected}
    if expected == 2.0:
        assert f"read from {SINGLE_NAME}, which is newer than {INDEX_NAME}" in caplog.text
        assert f"not read: {SHARDS[0]}, {SHARDS[1]}" in caplog.text
    else:
        assert f"read from {SHARDS[0]}, {SHARDS[1]}, which {INDEX_NAME} lists; not read: {SINGLE_NAME}" in caplog.text


def test_an_index_whose_files_are_gone_gives_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_sharded(tmp_path)
    save(tmp_path / SINGLE_NAME, 2.0, "a", "b")
    (tmp_path / SHARDS[1]).unlink()
    set_age(tmp_path / SINGLE_NAME, 1000)
    assert values(tmp_path) == {"a": 2.0, "b": 2.0}
    assert f"read from {SINGLE_NAME}, as {INDEX_NAME} lists files that are not there ({SHARDS[1]})" in caplog.text


def test_missing_shards_are_named(tmp_path: Path) -> None:
    make_sharded(tmp_path)
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(ModelLoadError, match=rf"lists 1 files that are not there \({SHARDS[1]}\)"):
        read_folder(tmp_path)


def test_parts_without_an_index_are_joined_if_all_are_there(tmp_path: Path) -> None:
    make_sharded(tmp_path)
    (tmp_path / INDEX_NAME).unlink()
    assert values(tmp_path) == {"a": 1.0, "b": 1.0}
    (tmp_path / SHARDS[0]).unlink()
    with pytest.raises(ModelLoadError, match=rf"lacks 1 of 2 parts \({SHARDS[0]}\)"):
        read_folder(tmp_path)


def test_a_tensor_in_two_files_is_the_one_that_the_index_lists(tmp_path: Path) -> None:
    save(tmp_path / SHARDS[0], 1.0, "a", "b")
    save(tmp_path / SHARDS[1], 2.0, "a", "c")
    write_index(tmp_path, a=SHARDS[1], b=SHARDS[0])
    assert values(tmp_path) == {"a": 2.0, "b": 1.0, "c": 2.0}
    write_index(tmp_path, b=SHARDS[0], c=SHARDS[1])
    with pytest.raises(ModelLoadError, match="tensor 'a' is in another file, too"):
        read_folder(tmp_path)


def test_an_index_may_list_buffers_that_nobody_reads(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "x.rotary_emb.inv_freq": torch.ones(2)}, tmp_path / SHARDS[0])
    write_index(tmp_path, **{"a": SHARDS[0], "x.rotary_emb.inv_freq": SHARDS[0]})
    assert values(tmp_path) == {"a": 1.0}


def test_makers_own_formats_are_no_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "consolidated.safetensors", 3.0, "x")
    with pytest.raises(ModelLoadError, match=r"no .safetensors file of a model; it holds consolidated.safetensors"):
        read_folder(tmp_path)
    save(tmp_path / SINGLE_NAME, 2.0, "a")
    assert values(tmp_path) == {"a": 2.0}
    assert not caplog.records, "a copy in another format is no doubt"


def test_files_of_other_names_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / SINGLE_NAME, 2.0, "a")
    save(tmp_path / "extra.safetensors", 3.0, "x")
    assert values(tmp_path) == {"a": 2.0}
    assert "not read: extra.safetensors" in caplog.text
    (tmp_path / SINGLE_NAME).rename(tmp_path / "other.safetensors")
    with pytest.raises(ModelLoadError, match=r"2 .safetensors files \(extra.safetensors, other.safetensors\) and no"):
        read_folder(tmp_path)


def test_a_hub_cache_of_links_is_read(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    make_sharded(blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert values(snapshot) == {"a": 1.0, "b": 1.0}
    (blobs / SHARDS[0]).unlink()
    with pytest.raises(ModelLoadError, match=r"is a link to \.\./\.\./blobs/model-00001.*, which does not exist"):
        read_folder(snapshot)
