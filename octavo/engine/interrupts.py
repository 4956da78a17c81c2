"""Ctrl-C at the right moment: a step that has begun is ended first, so that the engine stays whole.

Python raises KeyboardInterrupt between any two bytecodes of the main thread. In the middle of a step the scheduler
would have planned what nobody computes, and whoever calls again after Ctrl-C would meet an engine that is not sound.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Uninterrupted:
    """Holds the first Ctrl-C back until the end of its block; the second one comes at once. Does nothing on other
    threads, which are never interrupted, and where a program has a handler of its own."""

    def __init__(self) -> None:
        self._before: Any = None
        self._is_pressed = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self._is_pressed and error is None:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._is_pressed:
            raise KeyboardInterrupt
        self._is_pressed = True
