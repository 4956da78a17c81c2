"""Standard input as the rest of a prompt: `cat report.txt | octavo run smollm2 "Sum this up:"`.

The prompt comes first, then an empty line, then the text.
"""

from __future__ import annotations

import select
import sys

from octavo.errors import InvalidRequestError

#: seconds of silence after which somebody may wonder what is waited for
_PATIENCE_S = 1.0


def with_piped_text(prompts: list[str]) -> list[str]:
    """Each prompt with what comes through a pipe or from a redirected file. On a terminal nothing does."""
    for number, prompt in enumerate(prompts, 1):
        check_text(f"prompt {number}", prompt)
    text = _piped_text()
    return [f"{prompt}\n\n{text}" for prompt in prompts] if text.strip() else prompts


def check_text(name: str, text: str) -> str:
    """Raises InvalidRequestError for bytes that are no text, which Python hides in lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{name} is not UTF-8 at character {error.start}, allowed is text") from None
    return text


def read_standard_input() -> str:
    """All of it, without what some editors put before the first character. Raises InvalidRequestError for no text."""
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"standard input is not text: {error}") from None
    return check_text("standard input", text.removeprefix("\ufeff"))


def _piped_text() -> str:
    if sys.stdin.isatty():
        return ""
    _tell_what_is_waited_for()
    return read_standard_input().rstrip("\r\n")


def _tell_what_is_waited_for() -> None:
    """A pipe that nobody writes to and nobody closes would otherwise look like a program that hangs."""
    try:
        is_ready = bool(select.select([sys.stdin.fileno()], [], [], _PATIENCE_S)[0])
    except (OSError, ValueError):
        return  # a stream without a descriptor, or a system that cannot tell
    if not is_ready:
        print("octavo: reading standard input, a pipe, up to its end; `< /dev/null` goes without", file=sys.stderr)
