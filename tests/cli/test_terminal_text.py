"""Answers on a terminal, drawn by a small terminal emulator."""

from __future__ import annotations

import io
import random
import re

import pytest

from octavo.cli.terminal_text import TerminalText, width_of


class Screen(io.StringIO):
    """A terminal that knows characters, line ends, `back n` and `erase to the end`. It is very wide:
    only explicit line ends break a line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[list[str]] = [[]]
        self.column = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for back, erase, char in re.findall(r"\x1b\[(\d+)D|(\x1b\[K)|(.|\n)", text):
            if back:
                self.column -= int(back)
                assert self.column >= 0
            elif erase:
                del self.lines[-1][self.column :]
            elif char == "\n":
                self.lines.append([])
                self.column = 0
            else:
                width = width_of(char)
                if width == 0:
                    self.lines[-1][-1] += char
                assert self.column == len(self.lines[-1])
                self.lines[-1] += [char, ""][:width]
                self.column += width
        return len(text)

    @property
    def text(self) -> list[str]:
        return ["".join(line).rstrip() for line in self.lines]


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def shown(pieces: list[str], columns: int) -> list[str]:
    screen = Screen()
    text = TerminalText(screen, lambda: columns)
    for piece in pieces:
        text.write(piece)
    return screen.text


def test_words_go_to_the_next_line_whole_in_whatever_pieces_they_come() -> None:
    said = "The quick brown fox jumps over the lazy dog, and nothing is cut."
    rows = ["The quick brown fox", "jumps over the lazy", "dog, and nothing is", "cut."]
    assert shown([said], 21) == rows
    assert shown(list(said), 21) == rows
    for seed in range(20):
        cuts = sorted(random.Random(seed).sample(range(len(said)), 9))
        pieces = [said[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(said)], strict=True)]
        assert shown(pieces, 21) == rows


def test_wide_characters_take_two_cells_and_may_end_a_line_anywhere() -> None:
    rows = shown(list("八开本是一张纸折成八叶。"), 11)
    assert rows == ["八开本是一", "张纸折成八", "叶。"]
    assert shown(["cafe\u0301 " * 4], 11) == ["cafe\u0301 cafe\u0301", "cafe\u0301 cafe\u0301"]


def test_a_word_longer_than_a_line_is_left_to_the_terminal() -> None:
    link = "https://example.org/" + "x" * 30
    assert shown([f"See {link} for more"], 20) == ["See", link + " for more"]


def test_code_is_not_broken() -> None:
    code = "```\nx = [1, 2, 3, 4, 5, 6]\n```\n"
    assert shown([code + "Now words go on as before."], 16) == [
        *("```", "x = [1, 2, 3, 4, 5, 6]", "```"),
        *("Now words go on", "as before."),
    ]


def test_a_window_may_change_its_width() -> None:
    widths = iter([40, 12])
    screen = Screen()
    text = TerminalText(screen, lambda: next(widths))
    text.write("one two three four five\n")
    text.write("one two three four five")
    assert screen.text == ["one two three four five", "one two", "three four", "five"]


def test_a_pipe_gets_the_text_and_a_terminal_no_commands() -> None:
    said = "long " * 50 + "\x1b]0;title\x07\n"
    pipe = io.StringIO()
    TerminalText(pipe).write(said)
    assert pipe.getvalue() == said
    assert shown(["a\x1b[2Jb\x07"], 40) == ["a\\x1b[2Jb\\x07"]
