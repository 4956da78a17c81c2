"""The conversation that every chat on the command line holds: read a message, say something, remember both.

message ──▶ command, or ──▶ say(messages so far and this one) ──▶ shown as it comes, and remembered

Who answers is the caller's business: an engine in this process (`octavo run`) or a server (`octavo chat`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from octavo.cli.run_requests import Message
from octavo.cli.typed_messages import typed_messages
from octavo.errors import OctavoError

HELP = """  /reset   forget what was said
  /exit    leave; so does Ctrl-D
  /help    this
  Ctrl-C   stop the answer
Anything else is a message, also if it begins with /. What is pasted is one message, however many lines it has."""

#: shows the answer to a conversation as it comes; returns what was shown, also of an answer that was stopped
Say = Callable[[list[Message]], str]


class Conversation:
    """refusals: what `say` may raise without ending the chat, where somebody is there to read it. first: messages that
    are not forgotten, such as a system prompt. what: is to be typed."""

    def __init__(
        self,
        say: Say,
        refusals: tuple[type[OctavoError], ...],
        first: tuple[Message, ...] = (),
        what: str = "message",
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
