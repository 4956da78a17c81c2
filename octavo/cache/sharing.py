"""How much sequences share now: blocks, and what a decode step reads, with sharing and without it.

    sequence 1    4  9  17  3        blocks held     4 9 17 3 5      5
    sequence 2    4  9  17  5        unshared        4 + 4           8

Computed from the tables when somebody asks, never in a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from octavo.cache.blocks import BlockId
from octavo.cache.kv_cache import KVCache
from octavo.request import Sequence


@dataclass(frozen=True, slots=True)
class Sharing:
    """Unshared: counted once for each sequence. Slots read: those that each sequence's last computed token sees."""

    num_blocks: int
    num_unshared_blocks: int
    num_slots_read: int
    num_slots_read_unshared: int


def sharing_of(cache: KVCache, sequences: Iterable[Sequence]) -> Sharing:
    """What these sequences, all that have not ended, hold and read."""
    ref_counts, size = cache.pool.ref_counts, cache.block_size
    num_unshared = num_read = num_read_again = 0
    read_of: dict[BlockId, int] = {}  # shared block -> a bit for each slot that somebody reads
    for sequence in sequences:
        tables, num_computed = cache.tables.get(sequence.sequence_id), sequence.num_computed_tokens
        if tables is None or not tables.num_blocks:
            continue
        for group, table, first in zip(cache.groups, tables.block_ids, tables.first_visible, strict=True):
            begin = 0 if group.window is None else max(0, num_computed - group.window)
            num_unshared += len(table) - first
            num_read += num_computed - begin
            for index in range(first, len(table)):
                if ref_counts[table[index]] == 1:
                    if group.window is None:
                        break  # sequences share what they begin with
                    continue
                start, end = max(begin - index * size, 0), min(num_computed - index * size, size)
                if start < end:
                    num_read_again += end - start
                    read_of[table[index]] = read_of.get(table[index], 0) | (1 << end) - (1 << start)
    num_read_once = num_read - num_read_again + sum(slots.bit_count() for slots in read_of.values())
    return Sharing(cache.pool.num_owned, num_unshared, num_read_once, num_read)
