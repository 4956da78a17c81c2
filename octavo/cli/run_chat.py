"""`octavo run` on a terminal: a chat with the engine in this process. Ctrl-C stops the answer, which is kept."""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from octavo.cli.answers import Answer, Cuts, Sample
from octavo.cli.conversation import Conversation
from octavo.cli.run_requests import Message, RequestReader
from octavo.cli.terminal_text import TerminalText
from octavo.errors import InvalidRequestError, TokenizerError

if TYPE_CHECKING:
    from octavo.llm import LLM


@dataclass(slots=True)
class Interrupt:
    """Whether Ctrl-C was pressed."""

    is_pressed: bool = False


def chat(llm: LLM, reader: RequestReader) -> None:
    """Chat on the terminal. A model without a chat template completes each line separately."""

    turns = itertools.count()
    is_raw = reader.encode_chat is None

    def say(messages: list[Message]) -> str:
        turn = next(turns)
        request = reader.from_text(messages[-1]["content"], turn) if is_raw else reader.from_messages(messages, turn)
        answer = Answer(request, [Sample()])
        shown = TerminalText(sys.stdout)
        with _ctrl_c() as interrupt:
            for output in llm.stream([request.prompt], request.sampling_params.replace(n=1)):
                answer.extend(output)
                shown.write("".join(completion.text for completion in output.outputs))
                shown.flush()
                if interrupt.is_pressed:
                    break  # leaving the loop aborts the request
        print()
        cuts = Cuts()
        cuts.note(0, answer)
        cuts.tell(1)
        return answer.samples[0].text

    what = "text to be continued" if is_raw else "message"
    Conversation(say, (InvalidRequestError, TokenizerError), what=what).run()


@contextmanager
def _ctrl_c() -> Iterator[Interrupt]:
    """Record the first Ctrl-C, so that no step is interrupted; the second one stops the program."""
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
