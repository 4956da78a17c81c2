"""LoadReport: an engine tells each front end's router what the other front ends have sent it.

front end 0 ── work 300 ──▶ engine      Load(500) ──▶ front end 0
front end 1 ── work 500 ──▶             Load(300) ──▶ front end 1

Only one engine of several reports, at most every INTERVAL_S, and nothing while nothing changes. What a router is told
may be that old.
"""

from __future__ import annotations

from collections.abc import Callable

from octavo.processes.router import Piece
from octavo.processes.transport import AddRequest, Load

#: seconds between two reports
INTERVAL_S = 0.1
#: the most prompts told of in one report; the oldest are left out
_MAX_PROMPTS = 256


class LoadReport:
    """Keeps each front end's unfinished work. send: takes a front end and a message. is_needed: there are several
    engines; otherwise nothing is kept or sent."""

    def __init__(self, send: Callable[[bytes, Load], None], clock: Callable[[], float], *, is_needed: bool) -> None:
        self._send = send
        self._clock = clock
        self._is_needed = is_needed
        self._work: dict[bytes, int] = {}
        self._prompts: list[tuple[bytes, list[Piece]]] = []
        self._has_changed = False
        self._next_at = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until `send_changes` must be called even if nothing happens. None: no limit."""
        return max(0.0, self._next_at - self._clock()) if self._has_changed and len(self._work) > 1 else None

    def front_end_came(self, front_end: bytes) -> None:
        if self._is_needed:
            self._work.setdefault(front_end, 0)
            self._has_changed = True

    def front_end_gone(self, front_end: bytes) -> None:
        self._work.pop(front_end, None)
        self._has_changed = True

    def added(self, front_end: bytes, message: AddRequest) -> None:
        if front_end not in self._work:
            return
        self._work[front_end] += message.work
        self._has_changed = True
        if message.pieces:
            self._prompts = [*self._prompts[1 - _MAX_PROMPTS :], (front_end, message.pieces)]

    def ended(self, front_end: bytes, work: int) -> None:
        if front_end in self._work:
            self._work[front_end] -= work
            self._has_changed = True

    def send_changes(self) -> None:
        """Report what has changed, if the interval is over."""
        if not self._has_changed or len(self._work) < 2 or (now := self._clock()) < self._next_at:
            return
        self._next_at, self._has_changed = now + INTERVAL_S, False
        prompts, self._prompts = self._prompts, []
        total = sum(self._work.values())
        for front_end, own in list(self._work.items()):
            others = [pieces for sender, pieces in prompts if sender != front_end]
            self._send(front_end, Load(total - own, others))
