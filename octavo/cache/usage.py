"""How much of the pool is used, for what, and how much of it is wasted: figures for reports and metrics.

used     owned by sequences                         shared   of those, owned by several
cached   nobody's, but findable                     wasted   slots of used blocks that hold no token
free     nothing in them
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from octavo.cache.block import BlockId
from octavo.cache.kv_cache import KVCache
from octavo.request import Sequence


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """Counts of blocks, and of slots. num_saved_blocks: how many more there would be without sharing."""

    num_blocks: int
    num_used_blocks: int
    num_cached_blocks: int
    num_free_blocks: int
    num_shared_blocks: int
    num_saved_blocks: int
    num_wasted_slots: int


def measure_usage(cache: KVCache, sequences: Iterable[Sequence]) -> CacheUsage:
    """`sequences`: all that have not ended. The null block is not counted."""
    pool = cache.pool
    shared_counts = [count for count in pool.ref_counts if count > 1]
    return CacheUsage(
        num_blocks=pool.num_blocks - 1,
        num_used_blocks=pool.num_owned,
        num_cached_blocks=len(pool.cached),
        num_free_blocks=len(pool.free),
        num_shared_blocks=len(shared_counts),
        num_saved_blocks=sum(shared_counts) - len(shared_counts),
        num_wasted_slots=_num_wasted_slots(cache, sequences),
    )


def _num_wasted_slots(cache: KVCache, sequences: Iterable[Sequence]) -> int:
    """Only a sequence's last blocks can have empty slots; a block that forks share counts once."""
    empty: dict[BlockId, int] = {}
    for sequence in sequences:
        tables = cache.tables.get(sequence.sequence_id)
        if tables is None:
            continue
        for table in tables.block_ids:
            for index in range(sequence.num_computed_tokens // cache.block_size, len(table)):
                num_filled = max(0, sequence.num_computed_tokens - index * cache.block_size)
                empty[table[index]] = min(cache.block_size - num_filled, empty.get(table[index], cache.block_size))
    return sum(empty.values())
