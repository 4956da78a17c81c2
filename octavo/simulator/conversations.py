"""Conversations: when the next turn of a session is sent, and with which tokens it begins.

turn 1 ──answer──▶ end ──gap──▶ turn 2        a turn that arrives before the answer waits for it
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

from octavo.simulator.trace import TraceRequest


@dataclass(slots=True)
class _Session:
    """is_busy: a turn was sent, or has its time. waiting: turns that came meanwhile."""

    is_busy: bool = False
    last_end: float = 0.0
    history: list[int] = field(default_factory=list)
    waiting: deque[TraceRequest] = field(default_factory=deque)


class Conversations:
    """Owner of the sessions that have turns to come."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        self._due: list[tuple[float, int, TraceRequest]] = []  # a heap of turns that have their time
        self._num_timed = 0

    @property
    def next_time(self) -> float:
        """When the next turn is sent that has its time; inf: there is none."""
        return self._due[0][0] if self._due else math.inf

    def take(self) -> tuple[float, TraceRequest]:
        """The next turn that has its time, and that time."""
        at, _, turn = heapq.heappop(self._due)
        return at, turn

    def arrive(self, turn: TraceRequest, at: float) -> None:
        """A turn of a session, in the order of its turns."""
        assert turn.session is not None, "a request without a session is sent at once"
        session = self._sessions.setdefault(turn.session, _Session())
        if session.is_busy:
            session.waiting.append(turn)
        else:
            self._time(session, turn, at)

    def history(self, turn: TraceRequest) -> list[int]:
        return self._sessions[turn.session].history if turn.session is not None else []

    def ended(self, turn: TraceRequest, now: float, token_ids: list[int]) -> None:
        """A turn has its answer; token_ids: all tokens of the session now."""
        assert turn.session is not None, "only turns of a session are followed"
        if turn.is_last:
            del self._sessions[turn.session]
            return
        session = self._sessions[turn.session]
        session.is_busy, session.last_end, session.history = False, now, token_ids
        if session.waiting:
            self._time(session, session.waiting.popleft(), now)

    def _time(self, session: _Session, turn: TraceRequest, at: float) -> None:
        session.is_busy = True
        time = max(at, turn.arrival or 0.0, session.last_end + turn.gap)
        heapq.heappush(self._due, (time, self._num_timed, turn))
        self._num_timed += 1
