"""When to start a process anew that ended by itself, and when to give up.

ends after    -        1 s      1 s      ...                  serves for STABLE_S: counted from the beginning again
waits         0.5 s    1 s      2 s      4 s      8 s      then None: it will not live

An end that may be a request's doing is no sign of that: it makes the next wait longer, and is not counted.
"""

from __future__ import annotations

MAX_TRIES = 5
FIRST_DELAY_S = 0.5
#: whoever served for so long was sound when it was started
STABLE_S = 60.0


class Restarts:
    """Counts the ends of one process. Times are of any clock, as long as it is one."""

    def __init__(self) -> None:
        self.num_tries = 0
        self._num_excused = 0
        self._served_since: float | None = None

    def serves(self, now: float) -> None:
        self._served_since = now

    @property
    def has_served(self) -> bool:
        """Since it was started last."""
        return self._served_since is not None

    def next_delay(self, now: float, *, is_excused: bool = False) -> float | None:
        """It ended: the seconds to wait before the next start; None: enough is enough. is_excused: others may have
        made it end."""
        if self._served_since is not None and now - self._served_since >= STABLE_S:
            self.num_tries = self._num_excused = 0
        self._served_since = None
        if is_excused:
            self._num_excused += 1
        elif self.num_tries == MAX_TRIES:
            return None
        else:
            self.num_tries += 1
        return FIRST_DELAY_S * 2.0 ** (min(self.num_tries + self._num_excused, MAX_TRIES) - 1)
