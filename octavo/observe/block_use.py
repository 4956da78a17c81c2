"""How many KV blocks some sequences hold, and how many slots of these have a token.

A block that several sequences hold is shared: it exists once. Its slots are filled as by the longest of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from octavo.observe.frames import NULL_BLOCK, Frame


@dataclass(frozen=True, slots=True)
class Occupancy:
    """One moment. A used block belongs to at least one sequence; some of its slots may be empty."""

    num_sequences: int = 0
    num_used_blocks: int = 0
    num_filled_slots: int = 0
    num_shared_blocks: int = 0
    num_table_entries: int = 0  # blocks in use if nothing were shared
    num_table_slots: int = 0  # slots filled if nothing were shared


def occupancy(frame: Frame, sequence_ids: Iterable[int] | None = None) -> Occupancy:
    """The occupancy of all sequences, or of the given ones."""
    asked = frame.tables if sequence_ids is None else [one for one in sequence_ids if one in frame.tables]
    size, owners = frame.block_size, Counter[int]()
    filled: dict[int, int] = {}
    num_sequences = num_table_slots = 0
    for sequence_id in asked:
        tables, num_tokens = frame.tables[sequence_id], frame.num_computed.get(sequence_id, 0)
        num_sequences += any(map(any, tables))  # a null block is 0
        for table in tables:
            owners.update([block_id for block_id in table if block_id != NULL_BLOCK])
            for place, block_id in enumerate(table):
                if block_id != NULL_BLOCK:
                    in_block = min(max(num_tokens - place * size, 0), size)
                    filled[block_id] = max(filled.get(block_id, 0), in_block)
                    num_table_slots += in_block
    return Occupancy(
        num_sequences=num_sequences,
        num_used_blocks=len(owners),
        num_filled_slots=sum(filled.values()),
        num_shared_blocks=sum(count > 1 for count in owners.values()),
        num_table_entries=owners.total(),
        num_table_slots=num_table_slots,
    )
