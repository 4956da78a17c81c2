"""Which requests engines died at, remembered from one engine to the next: the parent outlives them all.

engine 1 dies at a b c     a b c 1          engine 2 lets them in one at a time (octavo/processes/probation.py)
engine 2 dies at b d       a c d 1, b 2     b's client is told, and engine 3 refuses b
engine 3 ends a            c d 1, b 2       after MEMORY_S nobody is remembered
"""

from __future__ import annotations

from collections.abc import Iterable

from octavo.processes.probation import MAX_DEATHS, MEMORY_S

#: more are not remembered: the oldest are forgotten
_MAX_KNOWN = 4096


class Suspects:
    """Times are of any clock, as long as it is one."""

    def __init__(self) -> None:
        self._deaths: dict[str, tuple[int, float]] = {}  # the one that was accused last is last

    def accuse(self, fingerprints: Iterable[str], now: float) -> list[str]:
        """An engine died in a step of theirs -> those at whom that happened too often."""
        for fingerprint in fingerprints:
            num_deaths, at = self._deaths.pop(fingerprint, (0, now))
            self._deaths[fingerprint] = (1 if now - at > MEMORY_S else num_deaths + 1), now
        while len(self._deaths) > _MAX_KNOWN:
            del self._deaths[next(iter(self._deaths))]
        return [one for one in fingerprints if self._deaths.get(one, (0, now))[0] >= MAX_DEATHS]

    def clear(self, fingerprint: str) -> None:
        """A request was computed to its end."""
        self._deaths.pop(fingerprint, None)

    def num_deaths(self, now: float) -> dict[str, int]:
        """What the next engine is told."""
        return {one: count for one, (count, at) in self._deaths.items() if now - at <= MEMORY_S}
