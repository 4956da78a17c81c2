"""Piped text is appended to the prompt; bytes that are not text are refused."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable

import pytest

from octavo.cli.standard_input import read_standard_input, with_piped_text
from octavo.errors import InvalidRequestError
from tests.cli.test_run import Terminal

Pipe = Callable[[bytes], None]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    def feed(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))

    return feed


def test_each_prompt_gets_the_piped_text_after_an_empty_line(pipe: Pipe) -> None:
    pipe(b"\xef\xbb\xbfone\r\n two\n\n")
    assert with_piped_text(["Sum up:", "Count:"]) == ["Sum up:\n\none\n two", "Count:\n\none\n two"]


@pytest.mark.parametrize("content", [b"", b"\n", b"  \r\n"])
def test_nothing_in_a_pipe_is_nothing(pipe: Pipe, content: bytes) -> None:
    pipe(content)
    assert with_piped_text(["Hi"]) == ["Hi"]


def test_a_terminal_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("typed ahead"))
    assert with_piped_text(["Hi"]) == ["Hi"]


def test_bytes_that_are_no_text_are_refused(pipe: Pipe) -> None:
    pipe(b"\xff\xfe\x00")
    with pytest.raises(InvalidRequestError, match="standard input is not text"):
        read_standard_input()
    with pytest.raises(InvalidRequestError, match="prompt 2 is not UTF-8 at character 1"):
        with_piped_text(["a", "b\udcff"])


def test_a_silent_pipe_is_said_to_be_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("octavo.cli.standard_input._PATIENCE_S", 0.05)
    end, other = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(end, encoding="utf-8"))

    def write_late() -> None:
        time.sleep(0.3)
        os.write(other, b"late")
        os.close(other)

    writer = threading.Thread(target=write_late)
    writer.start()
    assert with_piped_text(["Hi"]) == ["Hi\n\nlate"]
    writer.join()
    assert "reading standard input until the pipe closes" in capsys.readouterr().err
