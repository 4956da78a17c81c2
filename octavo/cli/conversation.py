"""The conversation that every chat on the command line holds: read a line, say something, remember both.

line ──▶ command, or ──▶ say(messages so far and this one) ──▶ shown as it comes, and remembered

Who answers is the caller's business: an engine in this process (`octavo run`) or a server (`octavo chat`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from octavo.cli.asks import Message
from octavo.errors import OctavoError

HELP = """  /reset   forget what was said
  /exit    leave; so does Ctrl-D
  /help    this
  Ctrl-C   stop the answer"""

#: shows the answer to a conversation as it comes; returns what was shown, also of an answer that was stopped
Say = Callable[[list[Message]], str]


class Conversation:
    """refusals: what `say` may raise without ending the chat, where somebody is there to read it. first: messages that
    are not forgotten, such as a system prompt."""

    def __init__(self, say: Say, refusals: tuple[type[OctavoError], ...], first: tuple[Message, ...] = ()) -> None:
        self._say = say
        self._refusals = refusals
        self._first = first
        self._messages: list[Message] = []

    def run(self) -> None:
        for typed in typed_lines("Type a message, /help for help, Ctrl-D to leave."):
            line = typed.strip()
            if line in ("/exit", "/quit"):
                return
            if line == "/reset":
                self._messages.clear()
            elif line.startswith("/"):
                print(HELP, file=sys.stderr)
            elif line:
                self._answer(line)

    def _answer(self, line: str) -> None:
        turn: Message = {"role": "user", "content": line}
        try:
            said = self._say([*self._first, *self._messages, turn])
        except self._refusals as error:
            if not sys.stdin.isatty():
                raise
            print(f"octavo: {error}\nThat message is forgotten; /reset forgets those before it, too.", file=sys.stderr)
            return
        self._messages += [turn, {"role": "assistant", "content": said}]


def typed_lines(welcome: str) -> Iterator[str]:
    """Lines until Ctrl-D, without their ends. Ctrl-C only drops the line. From a pipe they come without a prompt."""
    with suppress(ImportError):
        import readline  # noqa: F401  # editing and history of lines, where Python has it
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    print(f"\n{welcome}", file=sys.stderr)
    while True:
        try:
            line = input("\n> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)", end="", file=sys.stderr)
        else:
            yield line
