"""ComparedEvents: what a replay's scheduler and cache write into their log, beside what the recorded log has there."""

from __future__ import annotations

from collections import deque

import msgspec

from octavo.observe import events
from octavo.observe.events import Event
from octavo.observe.snapshot import Snapshot
from octavo.shown import cut

#: what is not decided by the scheduler or the cache, or is told with times
_NOT_COMPARED = (
    *(events.EngineStarted, events.Arrived, events.Refused, events.StepDone, events.EventsLost, events.EndAsked),
    Snapshot,
)


class ComparedEvents:
    """num_alike: events that were equal. difference: the first that is none, in words."""

    def __init__(self) -> None:
        self.num_alike = 0
        self.difference: str | None = None
        self._made: deque[Event] = deque()
        self._told: deque[Event] = deque()

    def add_made(self, event: Event) -> None:
        """The replay has written this; the log tells it later."""
        if type(event) not in _NOT_COMPARED:
            self._made.append(event)

    def add_told(self, event: Event) -> None:
        """The log has this event; the replay has done what led to it."""
        made, told = self._made, self._told
        if type(event) not in _NOT_COMPARED:
            told.append(event)
        while made and told and self.difference is None:
            ours, theirs = _essence(made.popleft()), _essence(told.popleft())
            self.num_alike += 1
            if ours != theirs:
                self.difference = f"the log has {cut(str(theirs), 400)}, and the replay has {cut(str(ours), 400)}"


def _essence(event: Event) -> Event:
    """An event without what no replay can know: times, content, and which tokens a grammar has forced."""
    event = msgspec.structs.replace(event, time=0.0)
    if type(event) is events.BlocksPublished or type(event) is events.SoughtInVain:
        return msgspec.structs.replace(event, hashes=())
    if type(event) is events.Sampled:
        return msgspec.structs.replace(event, token_ids=(), num_forced=0)
    return msgspec.structs.replace(event, fault="") if type(event) is events.Finished else event
