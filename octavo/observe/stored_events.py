"""Events as a file stores them: msgpack arrays that begin with the event's name.

A step mostly continues as the one before it promised, so its columns are stored as the difference from that:

    Scheduled   step 7    ids 4 5 6    from 90 31 12    tokens 1 1 1
    Scheduled   step 8    ids 4 5 6    from 91 32 13    tokens 1 1 1         stored: step 8, three times "as before"
"""

from __future__ import annotations

from functools import reduce
from operator import add, or_, sub
from typing import Any

import msgspec

from octavo.errors import LogError
from octavo.observe.events import Event, Sampled, Scheduled
from octavo.observe.snapshot import Snapshot


class _StoredScheduled(Event, frozen=True, tag="Scheduled"):
    """sequence_ids, num_tokens: None is as in the step before. num_computed: None if every sequence goes on where it
    was; else how far from there, or from 0 for one that was not in that step."""

    step: int
    sequence_ids: tuple[int, ...] | None
    num_computed: tuple[int, ...] | None
    num_tokens: tuple[int, ...] | None
    num_waiting: int
    num_free_blocks: int


class _StoredSampled(Event, frozen=True, tag="Sampled"):
    """sequence_ids: None is as in the last Scheduled."""

    step: int
    sequence_ids: tuple[int, ...] | None
    num_tokens: int
    run_lens: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    num_forced: int = 0


def _stored_kinds() -> Any:
    """A list of any stored events, as a type."""
    stored: dict[Any, Any] = {Scheduled: _StoredScheduled, Sampled: _StoredSampled}
    assert Snapshot in Event.__subclasses__(), "events of all files are imported here"
    kinds = [stored.get(kind, kind) for kind in Event.__subclasses__() if kind not in stored.values()]
    return list.__class_getitem__(reduce(or_, kinds))


DECODER: msgspec.msgpack.Decoder[list[Event]] = msgspec.msgpack.Decoder(_stored_kinds())


class Columns:
    """The columns that the next Scheduled is expected to have; the same for who writes and who reads."""

    def __init__(self) -> None:
        self._last = Scheduled(0.0, 0, (), (), (), 0, 0)

    def store(self, event: Event) -> Event:
        """What to write in place of an event."""
        if type(event) is Scheduled:
            return self._stored(event)
        if type(event) is Sampled:
            ids = None if event.sequence_ids == self._last.sequence_ids else event.sequence_ids
            rest = event.num_tokens, event.run_lens, event.token_ids, event.num_forced
            return _StoredSampled(event.time, event.step, ids, *rest)
        return event

    def restore(self, event: Event) -> Event:
        """The event that was stored so. Raises LogError if its columns differ in length."""
        if type(event) is _StoredScheduled:
            return self._restored(event)
        if type(event) is _StoredSampled:
            ids = self._last.sequence_ids if event.sequence_ids is None else event.sequence_ids
            rest = event.num_tokens, event.run_lens, event.token_ids, event.num_forced
            return Sampled(event.time, event.step, ids, *rest)
        return event

    def _stored(self, event: Scheduled) -> _StoredScheduled:
        last, self._last = self._last, event
        counts = event.num_waiting, event.num_free_blocks
        if event.num_before is last.num_before and event.ahead == last.ahead + 1:
            return _StoredScheduled(event.time, event.step, None, None, None, *counts)
        expected, num_computed = _expected(last, event.sequence_ids), event.num_computed
        return _StoredScheduled(
            event.time,
            event.step,
            None if event.sequence_ids == last.sequence_ids else event.sequence_ids,
            None if num_computed == expected else tuple(map(sub, num_computed, expected)),
            None if event.num_tokens == last.num_tokens else event.num_tokens,
            *counts,
        )

    def _restored(self, event: _StoredScheduled) -> Scheduled:
        last, counts = self._last, (event.num_waiting, event.num_free_blocks)
        ids = last.sequence_ids if event.sequence_ids is None else event.sequence_ids
        num_tokens = last.num_tokens if event.num_tokens is None else event.num_tokens
        columns, ahead = (ids, last.num_before, num_tokens), last.ahead + 1
        is_shared = ids is last.sequence_ids and num_tokens is last.num_tokens and event.num_computed is None
        if not is_shared or num_tokens.count(1) != len(num_tokens):
            num_computed, ahead = _expected(last, ids), 0
            if event.num_computed is not None:
                num_computed = tuple(map(add, event.num_computed, num_computed))
            if not len(ids) == len(num_tokens) == len(num_computed):
                raise LogError(f"step {event.step} has columns of different lengths")
            columns = ids, num_computed, num_tokens
        self._last = Scheduled(event.time, event.step, *columns, *counts, ahead)
        return self._last


def _expected(last: Scheduled, ids: tuple[int, ...]) -> tuple[int, ...]:
    """Where these go on after a step: those that were not in it from 0."""
    goes_on = tuple(map(add, last.num_computed, last.num_tokens))
    if ids == last.sequence_ids:
        return goes_on
    known = dict(zip(last.sequence_ids, goes_on, strict=True))
    return tuple([known.get(one, 0) for one in ids])
