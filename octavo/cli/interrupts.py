"""What Ctrl-C does: KeyboardInterrupt while a command works, where that can be borne; elsewhere the end, at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
_IMPORTING = "<frozen importlib._bootstrap>"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt meanwhile."""
    with _handling(_raise_or_leave):
        yield


@contextlib.contextmanager
def asyncios_ctrl_c() -> Iterator[None]:
    """asyncio ends its tasks in order at a Ctrl-C, but only where it finds Python's own handler."""
    with _handling(signal.default_int_handler):
        yield


def is_interrupt(error: BaseException | None) -> bool:
    """Whether it is a Ctrl-C, or what some library made of one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def leave() -> NoReturn:
    """At once, as Ctrl-C asks."""
    end_the_line()
    os._exit(INTERRUPTED)


def end_the_line() -> None:
    """A terminal shows ^C where it is typed; the shell's prompt belongs below."""
    if os.isatty(2):
        os.write(2, b"\n")


def _raise_or_leave(number: int, frame: FrameType | None) -> None:
    """A library that is just being imported may crash on an exception from nowhere, and has nothing to put away."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            leave()
        frame = frame.f_back
    raise KeyboardInterrupt


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Unless the shell has Ctrl-C ignored, as for a command in the background."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
