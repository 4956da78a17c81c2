"""Messages on a real terminal: pasted lines are one message, with and without bracketed paste."""

from __future__ import annotations

import codecs
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

CODE = """
from octavo.cli.standard_input import typed_messages
for message in typed_messages("welcome"):
    print("GOT", repr(message), flush=True)
print("LEFT", flush=True)
"""


class Typist:
    """Types at a terminal on which `typed_messages` reads."""

    def __init__(self) -> None:
        self.end, other = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "INPUTRC": "/dev/null"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE], stdin=other, stdout=other, stderr=other, env=environment
        )
        os.close(other)
        self.seen = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")()  # a character may come in two reads

    def until(self, text: str) -> str:
        """The output up to a text."""
        deadline = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < deadline, f"never saw {text!r}: {self.seen!r}"
            if select.select([self.end], [], [], 0.1)[0]:
                self.seen += self.decoder.decode(os.read(self.end, 4096))
        before, _, self.seen = self.seen.partition(text)
        return before

    def types(self, text: str) -> None:
        os.write(self.end, text.encode())


@pytest.fixture
def typist() -> Typist:
    return Typist()


def test_messages_of_a_person(typist: Typist) -> None:
    typist.until("> ")
    typist.types("Is 八 eight?\r")
    typist.until("GOT 'Is 八 eight?'")
    typist.until("> ")
    typist.types("\x1b[200~def f():\n    return 1\x1b[201~")
    typist.types("\r")
    typist.until("GOT 'def f():\\n    return 1'")
    typist.until("> ")
    typist.types("first\rsecond\rthird\r")  # a terminal that brackets nothing
    typist.until("GOT 'first\\nsecond\\nthird'")
    typist.until("> ")
    typist.types("half a line")
    time.sleep(0.2)
    typist.process.send_signal(signal.SIGINT)
    typist.until("(Ctrl-D or /exit leaves)")
    typist.until("> ")
    typist.types("\x1b[A\r")  # arrow up
    typist.until("GOT 'third'")
    typist.until("> ")
    typist.types("\x04")
    typist.until("LEFT")
    assert typist.process.wait(10) == 0
