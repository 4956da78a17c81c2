"""Which sequence holds which KV block, replayed from the event log.

    held[sequence]         { 7: 0, 8: 16, 12: 32 }     block id -> position of its first slot
    num_tokens[sequence]   37                          16 + 16 + 5: block 12 is partly filled

A block that several sequences hold is shared: it exists once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatchmethod

from octavo.observe import events


@dataclass(frozen=True, slots=True)
class Occupancy:
    """One moment. A used block belongs to at least one sequence; some of its slots may be empty."""

    num_sequences: int = 0
    num_used_blocks: int = 0
    num_filled_slots: int = 0
    num_shared_blocks: int = 0
    num_table_entries: int = 0  # blocks in use if nothing were shared
    num_table_slots: int = 0  # slots filled if nothing were shared


class BlockUse:
    """Follows events one by one; `occupancy` describes the moment after the last one."""

    def __init__(self) -> None:
        self._block_size = 1
        self._held: dict[int, dict[int, int]] = {}
        self._num_tokens: dict[int, int] = {}
        self._ends: dict[tuple[int, int], int] = {}  # (sequence, group) -> position after its last block
        self._found: dict[int, int] = {}  # sequence -> tokens found in the prefix tree

    @singledispatchmethod
    def follow(self, event: events.Event) -> None:
        """Other events move no blocks."""

    @follow.register
    def _(self, event: events.EngineStarted) -> None:
        self._block_size = event.block_size

    @follow.register
    def _(self, event: events.PrefixHit) -> None:
        """Blocks from the prefix tree are full, so position 0 works for all of them."""
        self._held.setdefault(event.sequence_id, {}).update(dict.fromkeys(event.block_ids, 0))
        self._found[event.sequence_id] = self._num_tokens[event.sequence_id] = event.num_tokens

    @follow.register
    def _(self, event: events.BlocksGiven) -> None:
        key = event.sequence_id, event.group
        held = self._held.setdefault(event.sequence_id, {})
        for block_id in event.block_ids:
            held[block_id] = self._ends.setdefault(key, self._found.get(event.sequence_id, 0))
            self._ends[key] += self._block_size

    @follow.register
    def _(self, event: events.Forked) -> None:
        self._held[event.sequence_id] = dict(self._held.get(event.parent_id, {}))
        self._num_tokens[event.sequence_id] = self._num_tokens.get(event.parent_id, 0)
        ends = {group: end for (sequence_id, group), end in self._ends.items() if sequence_id == event.parent_id}
        self._ends.update({(event.sequence_id, group): end for group, end in ends.items()})

    @follow.register
    def _(self, event: events.BlockCopied) -> None:
        held = self._held[event.sequence_id]
        held[event.target] = held.pop(event.source)

    @follow.register
    def _(self, event: events.BlocksFreed) -> None:
        held = self._held.get(event.sequence_id, {})
        for block_id in event.block_ids:
            held.pop(block_id, None)
        if event.why != "window":
            self._ends.pop((event.sequence_id, event.group), None)
            self._found.pop(event.sequence_id, None)
        if not held:
            self._held.pop(event.sequence_id, None)
            self._num_tokens.pop(event.sequence_id, None)

    @follow.register
    def _(self, event: events.Scheduled) -> None:
        rows = zip(event.sequence_ids, event.num_computed, event.num_tokens, strict=True)
        self._num_tokens.update({sequence_id: computed + granted for sequence_id, computed, granted in rows})

    def occupancy(self, sequence_ids: Iterable[int] | None = None) -> Occupancy:
        """The occupancy of all sequences, or of the given ones."""
        asked = self._held if sequence_ids is None else [one for one in sequence_ids if one in self._held]
        owners: Counter[int] = Counter()
        filled: dict[int, int] = {}
        num_table_slots = 0
        for sequence_id in asked:
            num_tokens = self._num_tokens.get(sequence_id, 0)
            owners.update(self._held[sequence_id].keys())
            for block_id, position in self._held[sequence_id].items():
                in_block = min(max(num_tokens - position, 0), self._block_size)
                filled[block_id] = max(filled.get(block_id, 0), in_block)
                num_table_slots += in_block
        return Occupancy(
            num_sequences=len(asked),
            num_used_blocks=len(owners),
            num_filled_slots=sum(filled.values()),
            num_shared_blocks=sum(count > 1 for count in owners.values()),
            num_table_entries=owners.total(),
            num_table_slots=num_table_slots,
        )
