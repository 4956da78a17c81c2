"""octavo run as people use it, on a real model."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octavo.cli.main import main

#: the answers of float32, without its weights, which take seconds to write out
EXACT = ("--temperature", "0", "--max-model-len", "512", "--backend", "cpu", "--activation-dtype", "int16")


class Terminal(io.StringIO):
    """A standard input that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def octavo_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """octavo run smollm2 ... -> its standard output and error."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*argv: str) -> tuple[str, str]:
        assert main(["run", "smollm2", *EXACT, *argv]) == 0
        return tuple(capsys.readouterr())  # type: ignore[return-value]

    return run


def test_several_prompts_are_answered_in_their_order(octavo_run: Callable[..., tuple[str, str]]) -> None:
    out, _ = octavo_run("What is the capital of France?", "Say hello.", "--max-tokens", "12")
    first, second = out.split("\n\n")
    assert first == "> What is the capital of France?\nThe capital of France is Paris."
    assert second.startswith("> Say hello.\n")


def test_raw_completes_and_alone_has_no_title(octavo_run: Callable[..., tuple[str, str]]) -> None:
    out, _ = octavo_run("--raw", "One, two, three,", "--max-tokens", "6")
    assert out.startswith(" four, five")


def test_the_report_counts_what_samples_share(octavo_run: Callable[..., tuple[str, str]]) -> None:
    prompt = "Write a sentence about paper and ink. " * 3
    out, err = octavo_run(prompt, "--n", "4", "--max-tokens", "8", "--ignore-eos", "--report")
    assert [line[:4] for line in out.splitlines() if line.startswith("[")] == ["[1] ", "[2] ", "[3] ", "[4] "]
    assert "requests 1, sequences 4" in err
    assert "32 tokens" in err
    assert "4 samples of one prompt held" in err
    assert "  backend " in err


def test_a_pipe_of_prompts_becomes_json_lines(
    octavo_run: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ['{"prompt": "One, two, three,", "max_tokens": 6}', '{"prompt": "A, B, C,", "stop": ["E"], "n": 2}']
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    _, err = octavo_run("--raw", "-o", str(tmp_path / "out.jsonl"))
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records] == [0, 1]
    assert records[0]["prompt"] == "One, two, three,"
    assert records[0]["outputs"][0]["text"].startswith(" four, five")
    assert records[0]["outputs"][0]["finish_reason"] == "length"
    assert records[0]["outputs"][0]["num_tokens"] == 6
    assert [sample["stop_reason"] for sample in records[1]["outputs"]] == ["E", "E"]
    assert "E" not in records[1]["outputs"][0]["text"]
    assert "2 prompts, " in err


def test_a_chat_remembers_until_it_is_reset(
    octavo_run: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "What is the capital of France?"
    lines = iter([question, "Repeat that.", "/reset", question, "/help", "", "x " * 600, "/exit", "never read"])
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    out, err = octavo_run("--max-tokens", "24")
    answers = out.splitlines()
    assert answers[0] == answers[-1] == "The capital of France is Paris."
    assert len(answers) >= 3
    assert "/reset" in err
    assert "That message was dropped" in err
    assert next(lines) == "never read"


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    octavo_run: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes during the first answer; the next message is still answered."""

    def lines() -> Iterator[str]:
        signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        yield "Count from one to one thousand."
        yield "/reset"
        yield "What is the capital of France?"

    typed = lines()

    def read(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", read)
    out, _ = octavo_run("--ignore-eos", "--max-tokens", "400", "--stop", "Paris")
    assert out.rstrip().endswith("The capital of France is")


def test_the_slow_backend_is_not_taken_in_silence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["run", "smollm2", "--max-model-len", "512", "--raw", "One,", "--max-tokens", "1"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("octavo: backend reference")
    assert "CXX is 'no-such-compiler'" in err


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "octavo", "run", "smollm2", *EXACT, "--raw", "One, two,", "--max-tokens", "200"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 141
    assert "Traceback" not in error
    assert "BrokenPipe" not in error
