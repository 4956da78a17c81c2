"""What a shell starts, as `octavo` or `python -m octavo`: the command line, and how a process of it ends.

    before a command works     nothing is open: Ctrl-C leaves at once
    while it works             Ctrl-C is a KeyboardInterrupt, which main.py ends in order
    after it                   threads and libraries say goodbye: Ctrl-C leaves at once

No moment shows a traceback, and 130 is what a shell expects of Ctrl-C. SIGTERM keeps the system's meaning: the end. A
server catches both in its supervisor.
"""

import os
import signal
import sys
from typing import Any

from octavo.cli.interrupts import INTERRUPTED, end_the_line, leave


def main() -> int:
    # Where the shell has it ignored, as for a command in the background, it stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: leave())
    sys.unraisablehook = _unraisable
    _open_closed_streams()
    from octavo.cli.main import main as run_command

    code = _flushed(run_command())
    if code == INTERRUPTED:
        end_the_line()
    return code


def _unraisable(unraisable: Any) -> None:
    """A Ctrl-C inside a callback or a destructor goes nowhere by itself."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        leave()
    sys.__unraisablehook__(unraisable)


def _open_closed_streams() -> None:
    """A stream that the shell closed (`<&-`) is None in Python: it reads as empty, what is written is for nobody."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")  # a terminal of few characters shows the others by their numbers


def _flushed(code: int) -> int:
    """What is still buffered goes out now, where a reader that left is no traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # It must not be tried again when Python closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return code or 141
        print(f"octavo: error: standard output cannot be written: {error}", file=sys.stderr)
        return code or 2
    return code
