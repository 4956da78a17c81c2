"""The entry point of `octavo` and `python -m octavo`: runs a command and ends the process cleanly.

    before a command runs      nothing is open: Ctrl-C exits at once
    while it runs              Ctrl-C is a KeyboardInterrupt, which main.py handles
    after it                   threads and libraries shut down: Ctrl-C exits at once

Ctrl-C never shows a traceback; shells expect exit code 130 for it. SIGTERM keeps its default action. A server's
supervisor handles both.
"""

import os
import signal
import sys
from typing import Any

from octavo.cli.interrupts import INTERRUPTED, end_the_line, leave


def main() -> int:
    # If the shell ignores it, as for a background command, it stays ignored.
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
    """A KeyboardInterrupt raised inside a callback or a destructor does not propagate."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        leave()
    sys.__unraisablehook__(unraisable)


def _open_closed_streams() -> None:
    """A stream that the shell closed (`<&-`) is None in Python: open it on the null device instead."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # open for the life of the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")  # characters that the terminal cannot encode are shown as escapes


def _flushed(code: int) -> int:
    """Flush buffered output here, so that a closed pipe gives no traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python must not flush again when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return code or 141
        print(f"octavo: error: standard output cannot be written: {error}", file=sys.stderr)
        return code or 2
    return code
