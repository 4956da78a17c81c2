"""Ctrl-C: KeyboardInterrupt while a command runs, if that is safe; otherwise the process exits at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
_IMPORTING = "<frozen importlib._bootstrap>"


def interruptible() -> AbstractContextManager[None]:
    """Ctrl-C raises KeyboardInterrupt inside this context."""
    return _handling(_raise_or_leave)


def asyncios_ctrl_c() -> AbstractContextManager[None]:
    """asyncio cancels its tasks in order on Ctrl-C, but only with Python's own handler installed."""
    return _handling(signal.default_int_handler)


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is a Ctrl-C, or was caused by one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def leave() -> NoReturn:
    """Exit at once."""
    end_the_line()
    os._exit(INTERRUPTED)


def end_the_line() -> None:
    """Move the shell's prompt below the ^C that the terminal shows."""
    if os.isatty(2):
        os.write(2, b"\n")


def _raise_or_leave(number: int, frame: FrameType | None) -> None:
    """Exit during an import: libraries may crash if it is interrupted, and there is nothing to clean up."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            leave()
        frame = frame.f_back
    raise KeyboardInterrupt


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Install a handler, unless the shell ignores Ctrl-C, as for a background command."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
