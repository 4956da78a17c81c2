"""What the cache writes into the event log: one line at each place where blocks move."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from octavo.cache.block_pool import PrefixMatch
from octavo.cache.blocks import NULL_BLOCK, BlockId, BlockTables
from octavo.observe.events import (
    BlockCopied,
    BlockEvicted,
    BlocksFreed,
    BlocksGiven,
    BlocksPublished,
    EventLog,
    Forked,
    PrefixHit,
)
from octavo.request import Sequence, SequenceId


class CacheJournal:
    """Callers ask `events.is_on` first, all but the pool."""

    def __init__(self, events: EventLog, clock: Callable[[], float]) -> None:
        self._events = events
        self._clock = clock

    def found(self, sequence_id: SequenceId, match: PrefixMatch) -> None:
        block_ids = tuple(_live(match.block_ids))
        self._events.write(PrefixHit(self._clock(), sequence_id, match.num_tokens, block_ids))

    def given(self, sequence_id: SequenceId, group: int, block_ids: list[BlockId]) -> None:
        self._events.write(BlocksGiven(self._clock(), sequence_id, group, tuple(block_ids)))

    def copied(self, sequence_id: SequenceId, source: BlockId, target: BlockId) -> None:
        self._events.write(BlockCopied(self._clock(), sequence_id, source, target))

    def forked(self, parent: Sequence, child: Sequence, tables: BlockTables) -> None:
        ids = parent.sequence_id, child.sequence_id, child.request.request_id
        self._events.write(Forked(self._clock(), *ids, len(_live(tables.block_ids))))

    def published(self, sequence_id: SequenceId, tables: BlockTables, first: int) -> None:
        for group, table in enumerate(tables.block_ids):
            parent = table[first - 1] if first else NULL_BLOCK
            block_ids = tuple(table[first : tables.num_published])
            self._events.write(BlocksPublished(self._clock(), sequence_id, group, parent, block_ids))

    def freed(self, sequence_id: SequenceId, tables: BlockTables, why: str) -> None:
        for group, first in enumerate(tables.first_visible):
            self.passed(sequence_id, group, tables.block_ids[group][first:], why)

    def passed(self, sequence_id: SequenceId, group: int, block_ids: list[BlockId], why: str = "window") -> None:
        self._events.write(BlocksFreed(self._clock(), sequence_id, group, tuple(block_ids), why))

    def evicted(self, block_id: BlockId) -> None:
        if self._events.is_on:
            self._events.write(BlockEvicted(self._clock(), block_id))


def _live(tables: Iterable[list[BlockId]]) -> list[BlockId]:
    return [block_id for table in tables for block_id in table if block_id != NULL_BLOCK]
