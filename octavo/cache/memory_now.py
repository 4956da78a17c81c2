"""Which block of KV memory holds what now, for the map on the server's page.

    sequences   [5, 37, [[4, 9, 17]]]      sequence 5: 37 tokens in blocks 4, 9 and 17, so the last has 5
    cached      [8, 3]                     nobody holds these, but they can be found

Made from the tables when somebody asks, never in a step. It names no request, and its size is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from octavo.cache.kv_cache import KVCache
from octavo.request import Sequence

#: more are left out: a page cannot show them, and the engine waits until they are copied
MAX_BLOCKS = 50_000


class HeldBlocks(msgspec.Struct, frozen=True, array_like=True):
    """tables: of each cache group, with 0 behind its window."""

    sequence_id: int
    num_tokens: int
    tables: list[list[int]]


class MemoryNow(msgspec.Struct, frozen=True):
    """num_left_out: sequences beyond the first ones, which hold MAX_BLOCKS blocks together."""

    num_blocks: int
    block_size: int
    sequences: list[HeldBlocks]
    cached: list[int]
    num_left_out: int


def memory_now(cache: KVCache, sequences: Iterable[Sequence]) -> MemoryNow:
    """sequences: all that have not ended."""
    told, num_entries, num_left_out = list[HeldBlocks](), 0, 0
    for sequence in sequences:
        tables = cache.tables.get(sequence.sequence_id)
        if tables is None or not tables.num_blocks:
            continue
        num_entries += tables.num_blocks * len(cache.groups)
        if num_entries > MAX_BLOCKS:
            num_left_out += 1
            continue
        block_ids = [[int(block_id) for block_id in table] for table in tables.block_ids]
        told.append(HeldBlocks(sequence.sequence_id, sequence.num_computed_tokens, block_ids))
    cached = [int(block_id) for block_id, _ in zip(cache.pool.cached, range(MAX_BLOCKS), strict=False)]
    return MemoryNow(cache.pool.num_blocks - 1, cache.block_size, told, cached, num_left_out)
