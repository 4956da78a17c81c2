"""Chats on the command line: read a message, show the answer, remember both.

message ──▶ command, or ──▶ say(messages so far and this one) ──▶ shown as it comes, and remembered

`say` asks the engine in this process (`octavo run`) or a server (`octavo chat`).
"""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from octavo.cli.answers import Answer, Cuts, Sample
from octavo.cli.run_requests import Message, RequestReader
from octavo.cli.standard_input import typed_messages
from octavo.cli.terminal_text import TerminalText
from octavo.errors import InvalidRequestError, OctavoError, TokenizerError

if TYPE_CHECKING:
    from octavo.llm import LLM

HELP = """  /reset   forget the conversation
  /exit    leave; so does Ctrl-D
  /help    this
  Ctrl-C   stop the answer
Anything else is a message, also if it begins with /. Pasted lines are one message."""

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
            print(f"octavo: {error}\nThat message was dropped; /reset drops the earlier ones too.", file=sys.stderr)
            return
        self._messages += [turn, {"role": "assistant", "content": said}]


def chat(llm: LLM, reader: RequestReader) -> None:
    """Chat with the engine in this process. Ctrl-C stops the answer, which is kept. A model without a chat template
    completes each line separately."""
    turns = itertools.count()
    is_raw = reader.encode_chat is None

    def say(messages: list[Message]) -> str:
        turn = next(turns)
        request = reader.from_text(messages[-1]["content"], turn) if is_raw else reader.from_messages(messages, turn)
        answer = Answer(request, [Sample()])
        shown = TerminalText(sys.stdout)
        with _ctrl_c() as pressed:
            for output in llm.stream([request.prompt], request.sampling_params.replace(n=1)):
                answer.extend(output)
                shown.write("".join(completion.text for completion in output.outputs))
                shown.flush()
                if pressed.is_set():
                    break  # leaving the loop aborts the request
        print()
        cuts = Cuts()
        cuts.note(0, answer)
        cuts.tell(1)
        return answer.samples[0].text

    what = "text to be continued" if is_raw else "message"
    Conversation(say, (InvalidRequestError, TokenizerError), what=what).run()


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C, so that no step is interrupted; the second one stops the program."""
    pressed = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
