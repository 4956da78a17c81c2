"""Ctrl-C at any moment of any command: exit code 130 and at most one line, never a traceback.

Moments are counted in imports or in processor time, so that a busy machine changes nothing. A driver inside the
process sends the interrupt.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octavo.cli.main import main

#: interrupts at the n-th import, or, for a negative n, after -n seconds of processor time; counts from our first line
DRIVER = """
import os, signal, sys, threading, time

moment = float(sys.argv[1])
sys.argv = ["octavo", *sys.argv[2:]]

def press(*event):
    os.kill(os.getpid(), signal.SIGINT)

def press_late():
    while time.process_time() < -moment:
        time.sleep(0.002)
    press()

def begin():
    if moment < 0:
        threading.Thread(target=press_late, daemon=True).start()
        return
    count = 0
    def look(event, args):
        nonlocal count
        if event == "import":
            count += 1
            if count == moment:
                press()
    sys.addaudithook(look)

from octavo.cli import entry

set_handler = signal.signal
def first(number, handler):
    signal.signal = set_handler
    before = set_handler(number, handler)
    begin()
    return before
signal.signal = first
sys.exit(entry.main())
"""
ANSWER = (
    "run",
    "smollm2",
    "Count.",
    "--max-tokens",
    "8000",
    "--ignore-eos",
    "--num-threads",
    "1",
    "--max-model-len",
    "8192",
)
SERVE = ("serve", "smollm2", "--port", "0")


def interrupted(moment: float, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(moment), *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    ("moment", "argv"),
    [
        *((number, ANSWER) for number in (1, 80, 200, 360)),
        *((-seconds, ANSWER) for seconds in (0.25, 0.8)),
        *((number, SERVE) for number in (60, 150)),
        (150, ("run-batch", "smollm2", "-i", "calls.jsonl", "-o", "results.jsonl")),
        (-1.1, ("run-batch", "smollm2", "-i", "calls.jsonl", "-o", "results.jsonl")),
        (150, ("bench", "serve")),
        (100, ("doctor",)),
        (150, ("list",)),
    ],
)
def test_ctrl_c_is_no_traceback(
    moment: float, argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = '{"messages": [{"role": "user", "content": "Count."}], "max_tokens": 4000, "ignore_eos": true}'
    call = f'{{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {body}}}'
    (tmp_path / "calls.jsonl").write_text(call)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.chdir(tmp_path)
    done = interrupted(moment, *argv)
    assert done.returncode == 130, done.stderr
    assert done.stderr.count("\n") <= 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("moment", "argv"), [(1, ANSWER), (80, ANSWER), (150, SERVE), (-0.8, ANSWER)])
def test_the_prompt_of_the_shell_comes_on_a_line_of_its_own(moment: float, argv: tuple[str, ...]) -> None:
    """The terminal has already shown ^C."""
    ours, theirs = os.openpty()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(moment), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(theirs)
    assert done.returncode == 130
    assert os.read(ours, 10_000).endswith(b"\n")
    os.close(ours)


@pytest.mark.parametrize("argv", [("run", "smollm2", "Hi"), SERVE])
def test_nor_while_kernels_are_built(argv: tuple[str, ...], tmp_path: Path) -> None:
    """A slow compiler, and a terminal that interrupts the whole process group."""
    compiler = tmp_path / "slow++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-c*) touch "$SLOW/begun"; sleep 60;; *) exec g++ "$@";; esac\n')
    compiler.chmod(0o755)
    cache = str(tmp_path / "cache")
    environment = os.environ | {"CXX": str(compiler), "OCTAVO_CACHE_DIR": cache, "SLOW": str(tmp_path)}
    command = [sys.executable, "-m", "octavo", *argv]
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=said, env=environment, start_new_session=True
        ) as process,
    ):
        try:
            wait_for(tmp_path / "begun", process)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the compiler, whose parent ignores Ctrl-C
    lines = (tmp_path / "said").read_text().splitlines()
    assert [line for line in lines if not line.startswith("octavo: building")] == []


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, "it ended before it began"
        assert time.monotonic() < deadline, "it never began"
        time.sleep(0.02)


def test_sigterm_ends_in_silence() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.replace("SIGINT)", "SIGTERM)"), "-0.4", *ANSWER],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGTERM
    assert done.stderr == ""


@pytest.mark.parametrize("argv", ["--help", "run --help=all", "list --json"])
def test_a_reader_that_leaves_early_is_no_traceback(argv: str) -> None:
    command = f"{sys.executable} -m octavo {argv}"
    with subprocess.Popen(command.split(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
    assert said == ""
    assert process.returncode == 141


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_in_the_midst_says_what_to_do(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(argv: list[str]) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("octavo.cli.main._run", write)
    assert main(["run"]) == 2
    told = capsys.readouterr().err
    assert told == (
        f"octavo: error: an output cannot be written: {os.strerror(number)}; free some space where it goes, or name "
        "another place\n"
    )


def test_a_full_disk_is_a_line() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "octavo", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_streams_that_the_shell_closed_are_empty() -> None:
    command = f"exec {sys.executable} -m octavo run no/model Hi <&- >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
