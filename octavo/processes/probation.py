"""Requests that were being computed when an engine died: recorded, remembered by the parent, tested by the next engine.

    engine    Scheduled ──▶ StepRecord: fingerprints of this step's requests and the previous one's ──▶ a file
    parent    the engine has ended ──▶ `who_was_computed` reads the file ──▶ Suspects ──▶ Probation in the next engine

After one death, the next engine runs them one at a time, each after the one before has ended or has run long enough to
be excused, so a second death accuses only one. After two, the request is refused.

engine 1 dies at a b c     a b c 1          engine 2 runs them one at a time
engine 2 dies at b d       a c d 1, b 2     b's client gets an error, and engine 3 refuses b
engine 3 ends a            c d 1, b 2       after MEMORY_S all are forgotten

A request is known by its fingerprint, a hash of its content. One that ends while the engine lives is cleared. The
file is in `step_record.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:  # the parent counts deaths and needs no messages
    from octavo.processes.transport import AddRequest
    from octavo.request import Request

#: deaths after which a request is refused
MAX_DEATHS = 2
#: seconds that deaths are remembered
MEMORY_S = 600.0
#: seconds after which a running request is excused and the next one may start
ALONE_S = 1.0
#: seconds for all of them, roughly; if there are many, one that has a token is excused sooner
ALL_S = 5.0


def refusal() -> InvalidRequestError:
    """The error for a request that two engines died at."""
    return InvalidRequestError(
        f"the engine died {MAX_DEATHS} times while it computed this request, so it is not tried again: change its "
        f"prompt or sampling parameters, or come again in {MEMORY_S / 60:.0f} minutes; the server's log says how the "
        "engine ended"
    )


@dataclass(frozen=True, slots=True)
class Held:
    """A request that waits for its turn, and its front end."""

    front_end: bytes
    message: AddRequest


class Probation:
    """Runs suspects one at a time. num_deaths: fingerprint -> the number of engines that recently died at it."""

    def __init__(self, num_deaths: Mapping[str, int], clock: Callable[[], float]) -> None:
        self._num_deaths = dict(num_deaths)
        self._clock = clock
        self._held: deque[Held] = deque()
        self._tried: Request | None = None

    def suspect(self, num_deaths: Mapping[str, int]) -> None:
        """Another engine has died."""
        self._num_deaths.update(num_deaths)

    def check(self, message: AddRequest) -> None:
        """Raises InvalidRequestError if a third engine could die at it."""
        if self._num_deaths.get(message.fingerprint, 0) >= MAX_DEATHS:
            raise refusal()

    def holds(self, front_end: bytes, message: AddRequest) -> bool:
        """Whether it must wait until another one has been tried; then it is kept here."""
        if message.fingerprint not in self._num_deaths or not (self._held or self._is_trying()):
            return False
        self._held.append(Held(front_end, message))
        return True

    @property
    def has_next(self) -> bool:
        """Whether a held request may start."""
        return bool(self._held) and not self._is_trying()

    def take_next(self) -> Held | None:
        """The held request that may start, if any."""
        return self._held.popleft() if self.has_next else None

    def tries(self, message: AddRequest, request: Request) -> Request | None:
        """A suspect was queued -> the one tried before it, which is excused: it is not blamed for the next death."""
        if message.fingerprint not in self._num_deaths:
            return None
        excused, self._tried = self._tried, request
        return excused

    def ended(self, request: Request) -> None:
        """A request has ended, in whatever way."""
        if request is self._tried:
            self._tried = None

    def clear(self, fingerprint: str) -> bool:
        """A request finished. True: it had been a suspect."""
        return self._num_deaths.pop(fingerprint, None) is not None

    def take_held(self, front_end: bytes, key: int | None = None) -> list[Held]:
        """Remove held requests of a front end: the one with this key, or all."""
        gone = [one for one in self._held if one.front_end == front_end and key in (None, one.message.key)]
        self._held = deque(one for one in self._held if one not in gone)
        return gone

    def take_held_by_id(self, request_id: str) -> list[Held]:
        gone = [one for one in self._held if one.message.request_id == request_id]
        self._held = deque(one for one in self._held if one not in gone)
        return gone

    def _is_trying(self) -> bool:
        if self._tried is None:
            return False
        begin = self._tried.first_scheduled_time
        if begin is None:
            return True
        has_token = any(sequence.num_output_tokens for sequence in self._tried.sequences)
        enough = min(ALONE_S, ALL_S / max(1, len(self._num_deaths))) if has_token else ALONE_S
        return self._clock() - begin < enough


#: the most fingerprints remembered; the oldest are forgotten
_MAX_KNOWN = 4096


class Suspects:
    """The parent's count of deaths per fingerprint. All times must come from the same clock."""

    def __init__(self) -> None:
        self._deaths: dict[str, tuple[int, float]] = {}  # the latest accused is last

    def accuse(self, fingerprints: Iterable[str], now: float) -> list[str]:
        """Record that an engine died in a step of these -> those that have reached MAX_DEATHS."""
        for fingerprint in fingerprints:
            num_deaths, at = self._deaths.pop(fingerprint, (0, now))
            self._deaths[fingerprint] = (1 if now - at > MEMORY_S else num_deaths + 1), now
        while len(self._deaths) > _MAX_KNOWN:
            del self._deaths[next(iter(self._deaths))]
        return [one for one in fingerprints if self._deaths.get(one, (0, now))[0] >= MAX_DEATHS]

    def clear(self, fingerprint: str) -> None:
        """The request finished."""
        self._deaths.pop(fingerprint, None)

    def num_deaths(self, now: float) -> dict[str, int]:
        """The counts to hand to the next engine."""
        return {one: count for one, (count, at) in self._deaths.items() if now - at <= MEMORY_S}
