"""A chat on the terminal. Ctrl-C stops the answer, not the program; what was said so far is remembered."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from octavo.cli.asks import AskReader, Message
from octavo.errors import InvalidRequestError, TokenizerError

if TYPE_CHECKING:
    from octavo.llm import LLM

HELP = """  /reset   forget what was said
  /exit    leave; so does Ctrl-D
  /help    this
  Ctrl-C   stop the answer"""


@dataclass(slots=True)
class Interrupt:
    """Whether Ctrl-C was pressed."""

    is_pressed: bool = False


class Chat:
    """One conversation. A model without a chat template completes each line by itself."""

    def __init__(self, llm: LLM, reader: AskReader) -> None:
        self._llm = llm
        self._reader = reader
        self._messages: list[Message] = []

    def run(self) -> None:
        print("\nType a message, /help for help, Ctrl-D to leave.", file=sys.stderr)
        while (line := _read_line()) is not None:
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
            said = self._say([*self._messages, turn], line)
        except (InvalidRequestError, TokenizerError) as error:
            print(f"octavo: {error}\nThe message was not sent; /reset forgets what was said before.", file=sys.stderr)
            return
        self._messages += [turn, {"role": "assistant", "content": said}]

    def _say(self, messages: list[Message], line: str) -> str:
        """Show the answer as it comes; returns what was shown."""
        reader = self._reader
        ask = reader.from_text(line) if reader.encode_chat is None else reader.from_messages(messages)
        said = ""
        with _ctrl_c() as interrupt:
            for output in self._llm.stream([ask.prompt], ask.sampling_params.replace(n=1)):
                piece = "".join(completion.text for completion in output.outputs)
                print(piece, end="", flush=True)
                said += piece
                if interrupt.is_pressed:
                    break  # leaving the loop aborts the request
        print()
        return said


@contextmanager
def _ctrl_c() -> Iterator[Interrupt]:
    """Note the first Ctrl-C, so that no step is torn in the middle; the second one stops the program."""
    interrupt = Interrupt()

    def note(number: int, frame: FrameType | None) -> None:
        if interrupt.is_pressed:
            raise KeyboardInterrupt
        interrupt.is_pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def _read_line() -> str | None:
    """None at the end. Ctrl-C only drops the line."""
    with suppress(ImportError):
        import readline  # noqa: F401  # editing and history of lines, where Python has it
    while True:
        try:
            return input("\n> ").strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)", end="", file=sys.stderr)
