"""Standard input as the rest of a prompt: `cat report.txt | octavo run smollm2 "Sum this up:"`.

The prompt comes first, then an empty line, then the text.
"""

from __future__ import annotations

import select
import sys

from octavo.errors import InvalidRequestError

#: seconds without input after which to print what we wait for
_PATIENCE_S = 1.0


def with_piped_text(prompts: list[str]) -> list[str]:
    """Each prompt followed by the text from a pipe or a redirected file, if there is any."""
    for number, prompt in enumerate(prompts, 1):
        check_text(f"prompt {number}", prompt)
    text = _piped_text()
    return [f"{prompt}\n\n{text}" for prompt in prompts] if text.strip() else prompts


def check_text(name: str, text: str) -> str:
    """Raise InvalidRequestError for undecodable bytes, which Python keeps as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{name} is not UTF-8 at character {error.start}, allowed is text") from None
    return text


def read_standard_input() -> str:
    """All of standard input, without a byte order mark. Raises InvalidRequestError if it is not text."""
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
    """Say so if an open pipe stays silent: it would look like a hang."""
    try:
        is_ready = bool(select.select([sys.stdin.fileno()], [], [], _PATIENCE_S)[0])
    except (OSError, ValueError):
        return  # no descriptor, or select cannot poll it
    if not is_ready:
        print("octavo: reading standard input, a pipe, up to its end; `< /dev/null` goes without", file=sys.stderr)
