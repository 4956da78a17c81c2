"""Messages as a person types or pastes them, until Ctrl-D; or a line each, from a pipe.

A terminal that brackets what is pasted hands GNU readline all lines at once. Where it does not, lines that are there in
the same moment were not typed, and are one message too.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Iterator
from contextlib import suppress

from octavo.cli.piped_text import check_text
from octavo.errors import InvalidRequestError

#: between two lines of a paste; nobody types a line so fast
_PASTE_GAP_S = 0.03


def typed_messages(welcome: str) -> Iterator[str]:
    """Without their line ends. Ctrl-C only drops the line."""
    with suppress(ImportError):
        import readline  # noqa: F401  # editing and history of lines, where Python has it
    if not sys.stdin.isatty():
        yield from _piped_lines()
        return
    print(f"\n{welcome}", file=sys.stderr)
    while True:
        try:
            print(file=sys.stderr, flush=True)  # not in the prompt, which readline draws again and again
            yield check_text("the message", _pasted_or_typed(input("> ")))
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)", end="", file=sys.stderr)
        except (InvalidRequestError, UnicodeDecodeError) as error:
            print(f"octavo: {error}; it is not sent", file=sys.stderr)


def _piped_lines() -> Iterator[str]:
    try:
        for number, line in enumerate(sys.stdin, 1):
            yield check_text(f"standard input, line {number}", line.rstrip("\r\n").removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"standard input is not text: {error}") from None


def _pasted_or_typed(first: str) -> str:
    lines = [first]
    while _is_more_there():
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(lines)


def _is_more_there() -> bool:
    try:
        return bool(select.select([sys.stdin.fileno()], [], [], _PASTE_GAP_S)[0])
    except (OSError, ValueError):
        return False
