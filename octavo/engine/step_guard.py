"""StepGuard: Ctrl-C waits for the end of a step.

Python may raise KeyboardInterrupt between any two bytecodes of the main thread. A step that has begun is finished
first: otherwise the scheduler's plan would never be computed, and its state would be wrong.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class StepGuard:
    """Delays Ctrl-C inside its block: the first one in a step takes effect after the step, the second at once. Does
    nothing on other threads, which Python never interrupts, or if the program has its own handler."""

    def __init__(self) -> None:
        self._before: Any = None
        self._is_in_step = self._is_pressed = False

    def __enter__(self) -> StepGuard:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def run(self, turn: Callable[[bool], None], steps: bool) -> None:
        self._is_in_step = True
        try:
            turn(steps)
        finally:
            self._is_in_step = False
        if self._is_pressed:
            self._is_pressed = False
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._is_pressed or not self._is_in_step:
            raise KeyboardInterrupt
        self._is_pressed = True
