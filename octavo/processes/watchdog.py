"""When a process that lives but says nothing is taken for one that hangs.

heard ──── patience ────▶ due        nothing until then: it hangs
                            └── but asked long after that: whoever asks did not run either (a stopped terminal job, a
                                virtual machine that was paused), so nobody could have been heard; counted anew
"""

from __future__ import annotations

import math

#: whoever waits for a moment and wakes so much later was stopped itself
OVERSLEPT_S = 1.0


class Watchdog:
    """Waits for one process to be heard again. Times are of any clock, as long as it is one."""

    def __init__(self) -> None:
        self.patience_s = 0.0
        self._due = math.inf
        self._rests = False

    def heard(self, now: float, patience_s: float) -> None:
        """patience_s: what it may take until it is heard again; 0: as long as it likes."""
        if self._rests:
            return  # said before it was told to end, or killed
        self.patience_s = patience_s
        self._due = now + patience_s if patience_s else math.inf

    def rest(self) -> None:
        """It is ending: whatever it still says, it need not be heard again."""
        self._rests = True
        self._due = math.inf

    def seconds_left(self, now: float) -> float:
        """Until it must be heard; infinite if it need not."""
        return max(0.0, self._due - now)

    def is_over(self, now: float) -> bool:
        """Whether it hangs."""
        if now - self._due > OVERSLEPT_S:
            self._due = now + self.patience_s
        return now >= self._due
