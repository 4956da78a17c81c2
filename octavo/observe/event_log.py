"""EventLog: the ring of events in memory, and who listens to it.

before            now
...............   S ........         at half its size the ring begins anew with a snapshot S of the engine,
                                     and forgets the half before: so it can always be followed from a known state
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator

from octavo.observe.events import EngineStarted, Event


class EventLog:
    """A bounded log with one writer (the engine's thread) and any number of readers.

    is_on: events are kept or listened to; writers check it before they build one. keeps_token_ids: with prompts and
    answers. write: appends an event, and calls the listeners. started: kept even when the log has dropped the event.
    newer: the half that is written now; at a size of `half` it wants `begin_half`. Plain attributes, since every step
    looks.
    """

    write: Callable[[Event], None]

    def __init__(self, capacity: int, *, keeps_token_ids: bool = False) -> None:
        self._capacity = capacity
        self._before: deque[Event] = deque()
        self.newer: deque[Event] = deque(maxlen=capacity)
        self.half = (capacity + 1) // 2 if capacity else sys.maxsize
        self._halves = self._before, self.newer
        self._listeners: list[Callable[[Event], None]] = []
        self.started: EngineStarted | None = None
        self.is_on = capacity > 0
        self.keeps_token_ids = keeps_token_ids
        self.write = self.newer.append

    def start(self, event: EngineStarted) -> None:
        """Write the first event."""
        self.started = event
        self.write(event)

    def listen(self, listener: Callable[[Event], None]) -> None:
        self._listeners.append(listener)
        self.is_on = True
        self.write = self._write_to_all

    def begin_half(self, snapshot: Event) -> None:
        """Forget the older half, and begin a new one with the engine's whole state. Listeners know it already."""
        self._before, self.newer = self.newer, deque((snapshot,), maxlen=self._capacity)
        self._halves = self._before, self.newer
        if not self._listeners:
            self.write = self.newer.append

    def _write_to_all(self, event: Event) -> None:
        self.newer.append(event)
        for listener in self._listeners:
            listener(event)

    def __iter__(self) -> Iterator[Event]:
        """The last events, without gaps."""
        while True:
            before, now = self._halves
            try:
                events = tuple(now)
                if len(events) < self._capacity:  # else the first ones of this half are gone
                    events = (*before, *events)
                return iter(events[-self._capacity :] if self._capacity else ())
            except RuntimeError:  # written to meanwhile
                continue

    def __len__(self) -> int:
        return sum(1 for _ in self)
