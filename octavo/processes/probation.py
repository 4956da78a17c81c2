"""What an engine does with requests that were being computed when an engine before it died.

    once     it may have been anybody's doing: those who come again are let in one at a time, each when the one before
             has ended, or has been computed for a while and is excused. So a second death accuses one of them, not all
    twice    refused: nobody is served by an engine that dies a third time

A request is known by its fingerprint, what it asks: a client that sends it again sends the same one. Who ends without
an engine's death is cleared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from octavo.errors import InvalidRequestError
from octavo.processes.transport import AddRequest
from octavo.request import Request

#: deaths after which a request is refused
MAX_DEATHS = 2
#: how long they are remembered
MEMORY_S = 600.0
#: seconds after which one that is computed makes room for the next one, though it has not ended
ALONE_S = 1.0
#: about so many seconds all of them take; of many, one that has got a token makes room sooner
ALL_S = 5.0


def refusal() -> InvalidRequestError:
    """What the client of a request is told that two engines died at."""
    return InvalidRequestError(
        f"the engine died {MAX_DEATHS} times while it computed this request, so it is not tried again: change its "
        f"prompt or sampling parameters, or come again in {MEMORY_S / 60:.0f} minutes; the server's log says how the "
        "engine ended"
    )


@dataclass(frozen=True, slots=True)
class Held:
    """A request that waits for its turn, and whose it is."""

    front_end: bytes
    message: AddRequest


class Probation:
    """num_deaths: fingerprint -> how many engines died at it lately."""

    def __init__(self, num_deaths: Mapping[str, int], clock: Callable[[], float]) -> None:
        self._num_deaths = dict(num_deaths)
        self._clock = clock
        self._held: deque[Held] = deque()
        self._tried: Request | None = None

    def check(self, message: AddRequest) -> None:
        """Raises InvalidRequestError where a third engine would die."""
        if self._num_deaths.get(message.fingerprint, 0) >= MAX_DEATHS:
            raise refusal()

    def holds(self, front_end: bytes, message: AddRequest) -> bool:
        """Whether it has to wait until another one has been tried."""
        if message.fingerprint not in self._num_deaths or not (self._held or self._is_trying()):
            return False
        self._held.append(Held(front_end, message))
        return True

    @property
    def has_next(self) -> bool:
        """Whether it is somebody's turn."""
        return bool(self._held) and not self._is_trying()

    def take_next(self) -> Held | None:
        """Whose turn it is."""
        return self._held.popleft() if self.has_next else None

    def tries(self, message: AddRequest, request: Request) -> Request | None:
        """A request was let in -> the one that is excused for that: the next death is not its doing."""
        if message.fingerprint not in self._num_deaths:
            return None
        excused, self._tried = self._tried, request
        return excused

    def ended(self, request: Request) -> None:
        """A request has ended, however."""
        if request is self._tried:
            self._tried = None

    def clear(self, fingerprint: str) -> bool:
        """It was computed to its end. True: it had been suspected."""
        return self._num_deaths.pop(fingerprint, None) is not None

    def take_held(self, front_end: bytes, key: int | None = None) -> list[Held]:
        """Those of a front end that it wants no more: one of them, or all."""
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
