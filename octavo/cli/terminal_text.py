"""Streamed answers on a terminal: words wrap at its edge, and control characters are escaped.

    The quick brown f|              a word is shown as it grows;
    The quick brown   |             when it no longer fits, it is erased
    fox               |             and moves to the next line

Text to a pipe is unchanged. Code between ``` is not wrapped, so that it can be copied.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TextIO

# Control characters except tab and line end: they could move the cursor or rename the window.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TAB_SIZE = 8
_FENCE = "```"


def visible(text: str) -> str:
    """Text with control characters escaped."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def width_of(char: str) -> int:
    """Terminal cells that a character occupies."""
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


class TerminalText:
    """Writes an answer to a terminal or another stream."""

    def __init__(self, file: TextIO, num_columns: Callable[[], int] | None = None) -> None:
        self._file = file
        self._is_terminal = file.isatty()
        self._num_columns = num_columns or (lambda: os.get_terminal_size(file.fileno()).columns)
        self._can_wrap = self._is_terminal and os.environ.get("TERM") != "dumb"
        self._start_line()
        self._is_code = False

    def write(self, text: str) -> None:
        if not self._is_terminal:
            self._file.write(text)
            return
        text = visible(text)
        if self._can_wrap:
            columns = max(2, self._num_columns())  # read each time: the window may be resized
            text = "".join(self._placed(char, columns) for char in text)
        self._file.write(text)

    def flush(self) -> None:
        self._file.flush()

    def _start_line(self) -> None:
        self._column = 0
        self._word, self._word_width = "", 0  # text since the last possible line break
        self._line_start = ""

    def _placed(self, char: str, columns: int) -> str:
        """What to write for the next character."""
        if char == "\n":
            self._is_code ^= self._line_start.startswith(_FENCE)
            self._start_line()
            return char
        if len(self._line_start) < len(_FENCE):
            self._line_start = (self._line_start + char).lstrip()
        width = _TAB_SIZE - self._column % _TAB_SIZE if char == "\t" else width_of(char)
        # The last column stays free: terminals disagree on where the cursor is after it.
        fits = self._column + width < columns
        if char.isspace() and not (self._is_code or fits):
            return self._broken("")
        before = ""
        if not fits and not self._is_code and self._word_width < self._column and self._word_width + width < columns:
            before = self._broken(self._word)
        self._column += width
        if self._column > columns:
            self._column = width  # longer than a line: the terminal wraps it
        is_end = char.isspace() or width == 2  # wide scripts have no spaces between words
        self._word, self._word_width = ("", 0) if is_end else (self._word + char, self._word_width + width)
        return before + char

    def _broken(self, word: str) -> str:
        """Erase the current word and start it on the next line."""
        back = f"\x1b[{self._word_width}D\x1b[K" if word and self._word_width else ""
        self._column = self._word_width if word else 0
        if not word:
            self._word, self._word_width = "", 0
        return f"{back}\n{word}"


def beside_one_another(rows: Sequence[Sequence[str]], *, names_rows: bool = False) -> list[str]:
    """A table's lines, its columns flush right. names_rows: the first one has names, flush left."""
    widths = [max(len(row[place]) for row in rows if place < len(row)) for place in range(len(rows[0]))]

    def padded(cell: str, width: int, place: int) -> str:
        return cell.ljust(width) if names_rows and place == 0 else cell.rjust(width)

    return ["  ".join(map(padded, row, widths, range(len(row)))).rstrip() for row in rows]
