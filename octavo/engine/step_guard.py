"""Ctrl-C at the right moment: a step that has begun is ended first, so that the engine stays whole.

Python raises KeyboardInterrupt between any two bytecodes of the main thread. In the middle of a step the scheduler
would have planned what nobody computes, and whoever calls again after Ctrl-C would meet an engine that is not sound.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StepGuard:
    """`with` it around each step: the first Ctrl-C within comes when the step has ended, the second one at once."""

    def __init__(self) -> None:
        self._is_in_step = False
        self._is_pressed = False

    def __enter__(self) -> None:
        self._is_in_step = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_in_step = False
        if self._is_pressed and error is None:
            self._is_pressed = False
            raise KeyboardInterrupt

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        if self._is_pressed or not self._is_in_step:
            raise KeyboardInterrupt
        self._is_pressed = True


class Uninterrupted:
    """Has a guard mind Ctrl-C until the end of its block. Does nothing on other threads, which are never interrupted,
    and where a program has a handler of its own."""

    def __init__(self) -> None:
        self._before: Any = None

    def __enter__(self) -> StepGuard:
        guard = StepGuard()
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._before = signal.signal(signal.SIGINT, guard.note)
        return guard

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
