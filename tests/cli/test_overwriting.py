"""A command does not overwrite a file that it reads, under any name."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.cli.main import main

LINE = '{"prompt": "Hi"}\n'


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "asked.jsonl"
    path.write_text(LINE)
    (tmp_path / "link.jsonl").symlink_to(path)
    os.link(path, tmp_path / "twin.jsonl")
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize("output", ["asked.jsonl", "./asked.jsonl", "link.jsonl", "twin.jsonl"])
@pytest.mark.parametrize("command", [["run", "smollm2"], ["run-batch", "smollm2"]], ids=["run", "run-batch"])
def test_the_input_is_no_output(
    command: list[str], output: str, asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "-i", str(asked), "-o", output]) == 2
    assert f"{output} is the file that --input" in capsys.readouterr().err
    assert asked.read_text() == LINE


def test_nor_is_what_the_shell_reads_or_the_model(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = asked.rename("model.gguf")
    assert main(["run", "model.gguf", "Hi", "-o", "model.gguf"]) == 2
    assert main(["bench", "throughput", "model.gguf", "--output-json", "model.gguf"]) == 2
    told = capsys.readouterr().err
    assert "--output model.gguf is the file that MODEL reads" in told
    assert "--output-json model.gguf is the file that --model reads" in told
    command = [sys.executable, "-m", "octavo", "run", "smollm2", "-o", "model.gguf"]
    with model.open() as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert model.read_text() == LINE


def test_what_is_measured_is_not_drawn_over(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "serve", "--dataset-name", "custom", "--dataset-path", "asked.jsonl", "--save-result"]
    assert main([*words, "--result-filename", "twin.jsonl"]) == 2
    assert "--result-filename twin.jsonl is the file that --dataset-path reads" in capsys.readouterr().err


def test_devices_may_be_both(asked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["run", "smollm2", "-i", "/dev/null", "-o", "/dev/null"]) == 2
    assert "/dev/null holds no prompt" in capsys.readouterr().err
