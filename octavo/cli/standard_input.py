"""Standard input: messages typed on a terminal, lines from a pipe, or the rest of a prompt.

octavo run smollm2 "Sum this up:" < report.txt     the prompt, an empty line, the text
"""

from __future__ import annotations

import select
import sys
from collections.abc import Iterator
from contextlib import suppress

from octavo.errors import InvalidRequestError

#: longest gap between two pasted lines; nobody types a line so fast
_PASTE_GAP_S = 0.03
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


def typed_messages(welcome: str) -> Iterator[str]:
    """Messages as typed or pasted until Ctrl-D, or one per line from a pipe. Ctrl-C only drops the line."""
    with suppress(ImportError):
        import readline  # noqa: F401  # line editing and history, if this Python has it
    if not sys.stdin.isatty():
        yield from _piped_lines()
        return
    print(f"\n{welcome}", file=sys.stderr)
    while True:
        try:
            print(file=sys.stderr, flush=True)  # outside the prompt, which readline redraws
            yield check_text("the message", _pasted_or_typed(input("> ")))
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)", end="", file=sys.stderr)
        except (InvalidRequestError, UnicodeDecodeError) as error:
            print(f"octavo: {error}; it is not sent", file=sys.stderr)


def _piped_text() -> str:
    if sys.stdin.isatty():
        return ""
    # An open pipe that stays silent would look like a hang.
    if _is_ready(_PATIENCE_S) is False:
        print("octavo: reading standard input until the pipe closes; `< /dev/null` skips it", file=sys.stderr)
    return read_standard_input().rstrip("\r\n")


def _piped_lines() -> Iterator[str]:
    try:
        for number, line in enumerate(sys.stdin, 1):
            yield check_text(f"standard input, line {number}", line.rstrip("\r\n").removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"standard input is not text: {error}") from None


def _pasted_or_typed(first: str) -> str:
    """One message. A terminal with bracketed paste hands readline all pasted lines at once; elsewhere, lines that
    arrive together were pasted, and are one message too."""
    lines = [first]
    while _is_ready(_PASTE_GAP_S):
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(lines)


def _is_ready(within_s: float) -> bool | None:
    """Whether there is input within some seconds; None without a descriptor, or with one that select cannot poll."""
    try:
        return bool(select.select([sys.stdin.fileno()], [], [], within_s)[0])
    except (OSError, ValueError):
        return None
