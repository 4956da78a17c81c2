"""octavo run-batch on a real model, killed in the middle."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octavo.cli.main import main

NUM_LINES = 16


def test_a_batch_that_was_killed_is_finished_with_each_line_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("\n".join(map(_line, range(NUM_LINES))))
    argv = ["run-batch", "-i", str(asked), "-o", str(results), "--model", "smollm2", "--num-threads", "1"]
    argv += ["--max-model-len", "256", "--max-num-seqs", "4", "--max-inflight", "2"]
    argv += ["--backend", "cpu", "--activation-dtype", "int16"]
    with subprocess.Popen([sys.executable, "-m", "octavo", *argv], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while _num_lines(results) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    num_before = _num_lines(results)
    assert 3 <= num_before < NUM_LINES, "it was to be killed in the middle"
    with results.open("ab") as file:
        file.write(b'{"id":"batch_req_torn","custom_id":"n2')

    assert main(argv) == 0
    records = [json.loads(one) for one in results.read_text().splitlines()]
    assert sorted(one["custom_id"] for one in records) == sorted(f"n{i}" for i in range(NUM_LINES))
    bodies = {one["custom_id"]: one["response"]["body"] for one in records}
    assert "Paris" in bodies["n0"]["choices"][0]["message"]["content"]
    assert bodies["n1"]["choices"][0]["text"].startswith(" four, five")
    assert all(body["usage"]["completion_tokens"] == 10 for body in bodies.values())
    assert f"{num_before} of {NUM_LINES} lines have a result already" in capsys.readouterr().err

    content = results.read_bytes()
    assert main(argv) == 0
    assert results.read_bytes() == content
    told = capsys.readouterr().err
    assert f"all {NUM_LINES} lines have a result" in told
    assert "tok/s" not in told, "no model is loaded for nothing"


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_has_an_empty_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    argv = ["run-batch", "-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--model", "nowhere"]
    assert main(argv) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert "holds no line" in capsys.readouterr().err


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _line(number: int) -> str:
    """Chats and completions in turn."""
    body: dict[str, object] = {"temperature": 0, "max_tokens": 10, "ignore_eos": True}
    if number % 2:
        body["prompt"] = "One, two, three,"
    else:
        body["messages"] = [{"role": "user", "content": "What is the capital of France?"}]
    url = "/v1/completions" if number % 2 else "/v1/chat/completions"
    return json.dumps({"custom_id": f"n{number}", "method": "POST", "url": url, "body": body})


def test_errors_in_lines_show_in_the_exit_code_and_refusals_come_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("not a call\n" + _line(1).replace('"prompt"', '"prompts"'))
    argv = ["run-batch", "-i", str(asked), "-o", str(results), "--model", "smollm2", "--max-model-len", "256"]
    assert main([*argv, "--max-inflight", "0"]) == 2
    assert "--max-inflight is 0, allowed is 1 or more" in capsys.readouterr().err
    assert not results.exists()
    assert main(argv) == 1
    assert "2 results are errors" in capsys.readouterr().err
    assert main(argv) == 1, "and so they do when there is nothing left to do"


def test_a_batch_goes_through_pipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{_line(0)}\nnot a call\n{_line(1)}".encode())))
    argv = ["run-batch", "smollm2", "-i", "-", "-o", "-", "--max-model-len", "256"]
    assert main(argv) == 1
    out, told = capsys.readouterr()
    records = {one["custom_id"]: one for one in map(json.loads, out.splitlines())}
    assert set(records) == {"n0", "n1", None}
    assert records["n0"]["response"]["status_code"] == 200
    assert records[None]["error"]["line"] == 2
    assert "3 lines, 20 tokens" in told
    assert list(tmp_path.iterdir()) == []
