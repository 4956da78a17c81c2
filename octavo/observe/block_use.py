"""Who holds which KV block, replayed from the event log: the allocator's books, seen from outside.

    tables[(sequence, group)]   [ 7, 8, 12 ]      a hole (None) is a block that a sliding window let go
    tokens[sequence]            37                16 + 16 + 5: the last block is partly filled

A block in several tables is shared: it exists once, however many sequences read it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import singledispatchmethod

from octavo.observe.events import (
    BlockCopied,
    BlocksFreed,
    BlocksGiven,
    EngineStarted,
    Event,
    Forked,
    PrefixHit,
    Scheduled,
)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """One moment. A used block belongs to at least one sequence; its slots may not all be filled."""

    num_sequences: int
    num_used_blocks: int
    num_filled_slots: int
    num_shared_blocks: int
    num_table_entries: int  # what would be used if nothing were shared


class BlockUse:
    """Follows events one by one; `occupancy` describes the moment after the last one."""

    def __init__(self) -> None:
        self._block_size = 1
        self._tables: dict[tuple[int, int], list[int | None]] = {}
        self._num_tokens: dict[int, int] = {}

    @singledispatchmethod
    def follow(self, event: Event) -> None:
        """Events that move no block change nothing."""

    @follow.register
    def _(self, event: EngineStarted) -> None:
        self._block_size = event.block_size

    @follow.register
    def _(self, event: PrefixHit) -> None:
        self._tables.setdefault((event.sequence_id, 0), []).extend(event.block_ids)

    @follow.register
    def _(self, event: BlocksGiven) -> None:
        self._tables.setdefault((event.sequence_id, event.group), []).extend(event.block_ids)

    @follow.register
    def _(self, event: Forked) -> None:
        for (sequence_id, group), table in list(self._tables.items()):
            if sequence_id == event.parent_id:
                self._tables[event.sequence_id, group] = list(table)
        self._num_tokens[event.sequence_id] = self._num_tokens.get(event.parent_id, 0)

    @follow.register
    def _(self, event: BlockCopied) -> None:
        for (sequence_id, _), table in self._tables.items():
            if sequence_id == event.sequence_id and event.source in table:
                table[table.index(event.source)] = event.target

    @follow.register
    def _(self, event: BlocksFreed) -> None:
        key = event.sequence_id, event.group
        if event.why == "window":
            gone = set(event.block_ids)
            self._tables[key] = [None if block_id in gone else block_id for block_id in self._tables[key]]
        else:
            self._tables.pop(key, None)

    @follow.register
    def _(self, event: Scheduled) -> None:
        for sequence_id, computed, granted in zip(
            event.sequence_ids, event.num_computed, event.num_tokens, strict=True
        ):
            self._num_tokens[sequence_id] = computed + granted

    def occupancy(self, sequence_ids: frozenset[int] | None = None) -> Occupancy:
        """Of all sequences, or of some."""
        owners: Counter[int] = Counter()
        filled: dict[int, int] = {}
        holders = set()
        for (sequence_id, _), table in self._tables.items():
            if sequence_ids is not None and sequence_id not in sequence_ids:
                continue
            holders.add(sequence_id)
            left = self._num_tokens.get(sequence_id, 0)
            for block_id in table:
                if block_id is not None:
                    owners[block_id] += 1
                    filled[block_id] = max(filled.get(block_id, 0), min(max(left, 0), self._block_size))
                left -= self._block_size
        return Occupancy(
            num_sequences=len(holders),
            num_used_blocks=len(owners),
            num_filled_slots=sum(filled.values()),
            num_shared_blocks=sum(count > 1 for count in owners.values()),
            num_table_entries=owners.total(),
        )
