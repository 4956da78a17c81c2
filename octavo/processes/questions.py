"""What front ends ask about the engine, answered between two steps and not between any two.

To write all metrics takes more than a millisecond. Whoever asks again and again waits for it, not those whose tokens
are being made: there is one answer an interval, made when it is sent, and everybody who asked meanwhile gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

#: seconds between two answers; the first question after a quiet time is answered at once
INTERVAL_S = 0.05


class Questions:
    """answers: what may be asked about, and who knows. send: takes a front end, its question's number, the answer."""

    def __init__(
        self,
        answers: Mapping[str, Callable[[], bytes]],
        send: Callable[[bytes, int, bytes], None],
        clock: Callable[[], float],
    ) -> None:
        self._answers = answers
        self._send = send
        self._clock = clock
        self._asked: dict[str, list[tuple[bytes, int]]] = {}
        self._next_at = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until `answer` should be called though nothing happens. None: as late as it likes."""
        return max(0.0, self._next_at - self._clock()) if self._asked else None

    def ask(self, front_end: bytes, number: int, about: str) -> None:
        self._asked.setdefault(about, []).append((front_end, number))

    def answer(self) -> None:
        """If it is time."""
        if not self._asked or (now := self._clock()) < self._next_at:
            return
        self._next_at = now + INTERVAL_S
        asked, self._asked = self._asked, {}
        for about, askers in asked.items():
            text = self._answers[about]()
            for front_end, number in askers:
                self._send(front_end, number, text)

    def front_end_gone(self, front_end: bytes) -> None:
        asked = {about: [one for one in askers if one[0] != front_end] for about, askers in self._asked.items()}
        self._asked = {about: askers for about, askers in asked.items() if askers}
