"""AwaitedAdapters: the requests that wait until workers have read their adapters, between the engine and the shelf."""

from __future__ import annotations

from collections.abc import Callable

from octavo.messages import AdapterRead
from octavo.observe.event_log import EventLog
from octavo.observe.events import AdapterAsked, AdapterCame
from octavo.outputs import FinishReason
from octavo.request import Request, Sequence
from octavo.scheduler.adapter_shelf import AdapterShelf, Place
from octavo.scheduler.adapter_slots import AdapterSlots
from octavo.scheduler.places import Places
from octavo.scheduler.step import SequenceUpdate


class AwaitedAdapters:
    """finish: ends a sequence. Used where workers read adapters."""

    def __init__(
        self,
        slots: AdapterSlots,
        shelf: AdapterShelf,
        places: Places,
        finish: Callable[[Sequence, FinishReason, str], None],
        events: EventLog,
        clock: Callable[[], float],
    ) -> None:
        self._slots, self._shelf, self._places, self._finish = slots, shelf, places, finish
        self._events, self._clock = events, clock

    @property
    def is_busy(self) -> bool:
        """Whether workers must read adapters, or are reading some."""
        return self._shelf.is_busy

    def hold(self, request: Request) -> bool:
        """Whether a request that arrives must wait for its adapter."""
        return request.adapter is not None and not self._slots.is_at_hand(request.adapter)

    def to_read(self) -> list[AdapterRead]:
        waiting: dict[int, Place] = {}
        for sequence in (*self._places.waiting.queue, *self._places.held.values()):
            if (adapter := sequence.request.adapter) is not None:
                place = self._places.waiting.rank(sequence)
                waiting[adapter.key] = min(place, waiting.get(adapter.key, place))
        reads = self._shelf.begin(waiting)
        for read in reads:
            if self._events.is_on:
                self._events.write(AdapterAsked(self._clock(), read.key, read.dropped))
        return reads

    def were_read(self, key: int, fault: str) -> list[SequenceUpdate]:
        """Workers have read an adapter: those who wait for it wait for their turns. fault: why they could not, which
        ends these -> their ends."""
        self._shelf.end(key, is_kept=not fault)
        if self._events.is_on:
            self._events.write(AdapterCame(self._clock(), key, fault))
        updates = []
        for sequence in list(self._places.held.values()):
            adapter = sequence.request.adapter
            if adapter is None or adapter.key != key:
                continue
            if fault:
                self._finish(sequence, "error", fault)
                updates.append(SequenceUpdate(sequence, []))
            else:
                self._places.release(sequence)
        return updates
