"""Invariants of the cache, checked after steps by tests and by engines with check_invariants.

every block      is free, cached or owned, and owned exactly as often as tables and loans hold it
every table      covers its sequence's computed tokens, and is null only behind a window
every write      goes to a block with one owner
the prefix tree  names blocks by what they hold, and loses no parent before its child
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from octavo.cache.blocks import NULL_BLOCK, BlockId, BlockTables, Root, chain_hash, live
from octavo.cache.kv_cache import KVCache
from octavo.request import Sequence


def check(cache: KVCache, sequences: Iterable[Sequence]) -> None:
    """Raise AssertionError if an invariant is broken. `sequences`: all that have not ended."""
    by_id = {sequence.sequence_id: sequence for sequence in sequences}
    stray = cache.tables.keys() - by_id.keys()
    assert not stray, f"tables are kept for sequences that have ended: {sorted(stray)}"
    _check_pool(cache)
    for sequence_id, tables in cache.tables.items():
        if tables.num_blocks:
            _check_tables(cache, tables, by_id[sequence_id])
        else:
            assert by_id[sequence_id].num_computed_tokens == 0, f"sequence {sequence_id} computed into no block"
    _check_tree(cache)


def _check_pool(cache: KVCache) -> None:
    """By whole sets and lists: a pool has thousands of blocks, and a step touches few."""
    pool, nodes = cache.pool, cache.tree.nodes
    held = Counter(block_id for tables in cache.tables.values() for block_id in live(tables.block_ids))
    held.update(pool.lent)
    free, cached, owned = set(pool.free), set(pool.cached), {block_id for block_id, count in held.items() if count}
    assert len(free) == len(pool.free), "a block is in the free list twice"
    assert not free & cached, f"blocks are both free and cached: {free & cached}"
    assert not owned & free | owned & cached, f"blocks with owners are free or cached: {owned & (free | cached)}"
    strange = (free | cached | owned) ^ set(range(1, pool.num_blocks))
    assert not strange, f"blocks are in no state, or are none: {sorted(strange)}"
    counts = [0] * pool.num_blocks
    for block_id in owned:
        counts[block_id] = held[block_id]
    assert pool.ref_counts == counts, _miscounted(cache, counts)
    assert free.isdisjoint(nodes), "a free block is in the prefix tree"
    assert cached <= nodes.keys(), "a cached block is not in the prefix tree"


def _miscounted(cache: KVCache, counts: list[int]) -> str:
    told, lent = cache.pool.ref_counts, cache.pool.lent
    block_id = BlockId(next(at for at, count in enumerate(counts) if told[at] != count))
    in_tables = counts[block_id] - lent[block_id]
    return f"block {block_id} is in {in_tables} tables and {lent[block_id]} loans, its count says {told[block_id]}"


def _check_tables(cache: KVCache, tables: BlockTables, sequence: Sequence) -> None:
    name, size = f"sequence {sequence.sequence_id}", cache.block_size
    num_computed = sequence.num_computed_tokens
    assert len({len(table) for table in tables.block_ids}) == 1, f"{name}: tables differ in length"
    assert tables.num_blocks * size >= num_computed, f"{name}: {num_computed} tokens do not fit its table"
    assert tables.room <= tables.num_blocks * size, f"{name}: has room beyond its table"
    num_planned = sequence.num_tokens + sequence.num_pending
    assert num_computed <= num_planned, f"{name}: computed more tokens than it has or is drawing"
    for group, table in enumerate(tables.block_ids):
        first = tables.first_visible[group]
        must_see = cache.groups[group].first_visible_block(num_computed, size)
        assert first <= must_see, f"{name}: group {group} gave back blocks it still sees"
        assert all(block_id == NULL_BLOCK for block_id in table[:first]), f"{name}: a block behind the window"
        assert NULL_BLOCK not in table[first:], f"{name}: a null block where it reads"
        for index in range(num_computed // size, -(-tables.room // size)):
            if tables.room > num_computed:
                count = cache.pool.ref_counts[table[index]]
                assert count == 1, f"{name}: may write into block {table[index]}, which has {count} owners"
        for index in range(first, tables.num_published):
            node = cache.tree.nodes.get(table[index])
            if node is not None:
                assert node.content == tables.hashes[index + 1], f"{name}: block {table[index]} is misnamed"
    _check_hashes(cache, tables, sequence)


def _check_hashes(cache: KVCache, tables: BlockTables, sequence: Sequence) -> None:
    content = Root.of(sequence.request).hash()
    for index, stored in enumerate(tables.hashes):
        assert stored == content, f"sequence {sequence.sequence_id}: hash {index} is not that of its tokens"
        tokens = sequence.token_ids[index * cache.block_size : (index + 1) * cache.block_size]
        content = chain_hash(content, tokens)


def _check_tree(cache: KVCache) -> None:
    assert NULL_BLOCK not in cache.tree, "the null block is in the prefix tree"
    for block_id, node in cache.tree.nodes.items():
        found = cache.tree.find(node.group, node.content)
        assert found is not None, f"block {block_id} is in the tree but cannot be found"
        assert cache.tree.nodes[found].content == node.content
        if cache.groups[node.group].window is None and node.depth > 0:
            assert cache.tree.find(node.group, node.parent) is not None, f"block {block_id} lost its parent"
