"""The conversation of every chat on the command line: read a message, show the answer, remember both.

message ──▶ command, or ──▶ say(messages so far and this one) ──▶ shown as it comes, and remembered

The caller supplies `say`: an engine in this process (`octavo run`) or a server (`octavo chat`).
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from octavo.cli.piped_text import check_text
from octavo.cli.run_requests import Message
from octavo.errors import InvalidRequestError, OctavoError

#: longest gap between two pasted lines; nobody types a line so fast
_PASTE_GAP_S = 0.03


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


HELP = """  /reset   forget what was said
  /exit    leave; so does Ctrl-D
  /help    this
  Ctrl-C   stop the answer
Anything else is a message, also if it begins with /. What is pasted is one message, however many lines it has."""

#: streams the answer to a conversation; returns the text shown, even if the answer was stopped
Say = Callable[[list[Message]], str]


class Conversation:
    """refusals: errors of `say` that do not end a chat on a terminal. first: messages that /reset keeps, such as a
    system prompt. what: what the user types."""

    def __init__(
        self, say: Say, refusals: tuple[type[OctavoError], ...], first: tuple[Message, ...] = (), what: str = "message"
    ) -> None:
        self._say = say
        self._refusals = refusals
        self._first = first
        self._what = what
        self._messages: list[Message] = []

    def run(self) -> None:
        for typed in typed_messages(f"Type a {self._what}, /help for help, Ctrl-D to leave."):
            command = typed.strip()
            if command in ("/exit", "/quit"):
                return
            if command == "/reset":
                self._messages.clear()
            elif command == "/help":
                print(HELP, file=sys.stderr)
            elif command:
                self._answer(typed)

    def _answer(self, text: str) -> None:
        turn: Message = {"role": "user", "content": text}
        try:
            said = self._say([*self._first, *self._messages, turn])
        except self._refusals as error:
            if not sys.stdin.isatty():
                raise
            print(f"octavo: {error}\nThat message is forgotten; /reset forgets those before it, too.", file=sys.stderr)
            return
        self._messages += [turn, {"role": "assistant", "content": said}]
