"""Blocks move between free, cached and owned, and are found by content; eviction is oldest first."""

import pytest

from octavo.cache.block_pool import BlockPool, PrefixTree
from octavo.cache.blocks import NULL_BLOCK, BlockTables, CacheGroup, Root, chain_hash
from octavo.observe.event_log import EventLog
from octavo.observe.events import BlockEvicted

FULL = CacheGroup((0,))
SLIDING = CacheGroup((1,), window=5)  # with blocks of 4 tokens, a token sees at most two blocks
BLOCK_SIZE = 4


@pytest.fixture
def tree():
    return PrefixTree()


@pytest.fixture
def evicted():
    return []


@pytest.fixture
def pool(tree, evicted):
    events = EventLog(0)
    events.listen(lambda event: isinstance(event, BlockEvicted) and evicted.append(event.block_id))
    return BlockPool(6, tree, events, clock=float)  # blocks 1 to 5 and the null block


def publish(tree, block_ids, token_ids):
    """Enter blocks of two tokens each into the prefix tree."""
    tables = BlockTables.empty(Root().hash(), 1)
    tables.block_ids[0].extend(block_ids)
    tables.extend_hashes(token_ids, len(block_ids), block_size=2)
    tree.publish(tables, len(block_ids))


def test_the_null_block_is_never_given(pool):
    assert pool.num_available == 5
    assert sorted(pool.take(5)) == [1, 2, 3, 4, 5]
    assert pool.num_available == 0


def test_a_block_without_content_becomes_free_and_is_the_next_one_given(pool, evicted):
    first, second = pool.take(2)
    pool.release(first)
    assert pool.take(1) == [first]
    assert pool.ref_counts[second] == 1
    assert evicted == []


def test_a_published_block_stays_findable_until_it_is_evicted(pool, tree, evicted):
    (block_id,) = pool.take(1)
    publish(tree, [block_id], [10, 11])
    pool.release(block_id)
    assert list(pool.cached) == [block_id]
    others = pool.take(4)
    assert evicted == [], "free blocks are taken before cached ones"
    assert pool.take(1) == [block_id]
    assert evicted == [block_id]
    assert block_id not in tree
    assert len(others) == 4


def test_sharing_takes_a_cached_block_back(pool, tree):
    (block_id,) = pool.take(1)
    publish(tree, [block_id], [10, 11])
    pool.release(block_id)
    pool.share(block_id)
    pool.share(block_id)
    assert pool.ref_counts[block_id] == 2
    assert not pool.cached
    pool.release(block_id)
    assert pool.num_owned == 1, "one owner is left"


def test_eviction_takes_the_oldest_leaf_first_and_a_parent_after_its_children(pool, tree, evicted):
    old, new = pool.take(2), pool.take(2)
    publish(tree, old, [1, 1, 2, 2])
    publish(tree, new, [3, 3, 4, 4])
    for block_id in [*reversed(old), *reversed(new)]:  # as sequences release them: last block first
        pool.release(block_id)
    pool.take(5)
    assert evicted == [old[1], old[0], new[1], new[0]]


def test_releasing_too_often_is_caught(pool):
    (block_id,) = pool.take(1)
    pool.release(block_id)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(block_id)


# Blocks are found by content, only after the same parents and under the same root


def tables_of(token_ids, *block_ids, salt=None, root=None):
    """Tables whose full blocks hold these tokens; one list of block ids per group."""
    tables = BlockTables.empty((root or Root(salt)).hash(), len(block_ids))
    for table, ids in zip(tables.block_ids, block_ids, strict=True):
        table.extend(ids)
    tables.extend_hashes(token_ids, len(token_ids) // BLOCK_SIZE, BLOCK_SIZE)
    return tables


def find(tree, token_ids, *groups, salt=None, root=None):
    return tree.match(tables_of(token_ids, salt=salt, root=root).hashes[1:], groups, BLOCK_SIZE)


def test_a_hash_names_the_whole_past():
    root = Root().hash()
    assert chain_hash(root, [1, 2]) == chain_hash(root, [1, 2])
    assert chain_hash(root, [1, 2]) != chain_hash(root, [2, 1])
    assert chain_hash(chain_hash(root, [1]), [5]) != chain_hash(chain_hash(root, [2]), [5])


def test_the_longest_common_run_of_blocks_is_found():
    tree = PrefixTree()
    tree.publish(tables_of(range(12), [7, 8, 9]), 3)
    assert find(tree, [0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0], FULL).block_ids == [[7, 8]]
    assert find(tree, list(range(16)), FULL).num_tokens == 12
    assert find(tree, [9, 9, 9, 9], FULL).num_tokens == 0


def test_salts_are_worlds_apart():
    tree = PrefixTree()
    tree.publish(tables_of(range(8), [1, 2], salt="mine"), 2)
    assert find(tree, list(range(8)), FULL, salt="mine").num_tokens == 8
    assert find(tree, list(range(8)), FULL, salt="yours").num_tokens == 0
    assert find(tree, list(range(8)), FULL).num_tokens == 0
    assert Root("").hash() != Root().hash()


ROOTS = [Root(), Root("a"), Root(adapter="a"), Root(media=b"a"), Root("a", "a"), Root("a", None, b"a"), Root("none;")]


def test_whatever_a_root_is_made_of_parts_the_blocks_under_it():
    assert len({root.hash() for root in ROOTS}) == len(ROOTS)
    tree = PrefixTree()
    for block_id, root in enumerate(ROOTS, 1):
        assert find(tree, [1, 2, 3, 4], FULL, root=root).num_tokens == 0, "other roots' blocks are not found"
        tree.publish(tables_of([1, 2, 3, 4], [block_id], root=root), 1)
    found = [find(tree, [1, 2, 3, 4], FULL, root=root).block_ids for root in ROOTS]
    assert found == [[[block_id]] for block_id, _ in enumerate(ROOTS, 1)]


def test_a_roots_hash_is_the_same_in_every_process():
    assert Root("tenant").hash().hex() == "d419b76fdf837365b963ccaec82090c6"
    assert Root().hash().hex() == "7f41dc5f55912d4fdd2b6de69dda3464"


def test_equal_blocks_are_both_kept_and_either_serves():
    tree = PrefixTree()
    tree.publish(tables_of(range(4), [1]), 1)
    tree.publish(tables_of(range(4), [2]), 1)
    assert find(tree, list(range(4)), FULL).block_ids == [[1]]
    tree.remove(1)
    assert find(tree, list(range(4)), FULL).block_ids == [[2]]
    tree.remove(2)
    assert find(tree, list(range(4)), FULL).num_tokens == 0


def test_a_leaf_is_a_block_that_nothing_continues():
    tree = PrefixTree()
    tree.publish(tables_of(range(8), [1, 2]), 2)
    assert not tree.is_leaf(1)
    assert tree.is_leaf(2)
    tree.remove(2)
    assert tree.is_leaf(1)


def test_a_sliding_group_needs_only_its_last_window():
    tree = PrefixTree()
    tree.publish(tables_of(range(16), [1, 2, 3, 4], [11, 12, 13, 14]), 4)
    tree.remove(11)
    tree.remove(12)
    match = find(tree, list(range(16)), FULL, SLIDING)
    assert match.num_tokens == 16
    assert match.block_ids == [[1, 2, 3, 4], [NULL_BLOCK, NULL_BLOCK, NULL_BLOCK, 14]], "position 16 sees 12 .. 16"


def test_a_gap_in_the_window_shortens_the_match_for_every_group():
    tree = PrefixTree()
    tree.publish(tables_of(range(16), [1, 2, 3, 4], [11, 12, 13, 14]), 4)
    tree.remove(14)
    assert find(tree, list(range(16)), FULL, SLIDING).block_ids == [[1, 2, 3], [NULL_BLOCK, NULL_BLOCK, 13]]
    tree.remove(2)
    assert find(tree, list(range(16)), FULL, SLIDING).block_ids == [[1], [11]], "full attention needs every block"
    tree.remove(11)
    assert find(tree, list(range(16)), FULL, SLIDING).num_tokens == 0


def test_wide_windows_need_several_blocks_in_a_row():
    wide = CacheGroup((0,), window=8)  # position 16 sees 9 .. 16: blocks 2 and 3
    tree = PrefixTree()
    tree.publish(tables_of(range(16), [1, 2, 3, 4]), 4)
    assert find(tree, list(range(16)), wide).block_ids == [[NULL_BLOCK, NULL_BLOCK, 3, 4]]
    tree.remove(3)
    assert find(tree, list(range(16)), wide).block_ids == [[1, 2]]


def test_a_group_is_asked_again_when_another_shortens_the_match():
    """Blocks:            0  1  2  3
    narrow group, window 5   ─  ─  ─  x      four blocks would do
    wide group, window 8     x  x  ─  ─      needs two in a row, so at most two blocks
    """
    narrow, wide = CacheGroup((0,), window=5), CacheGroup((1,), window=8)
    tree = PrefixTree()
    tree.publish(tables_of(range(16), [1, 2, 3, 4], [11, 12, 13, 14]), 4)
    for block_id in (1, 3, 13, 2):
        tree.remove(block_id)
    assert find(tree, list(range(16)), narrow, wide).num_tokens == 0, "narrow has only its fourth block"
    tree.publish(tables_of(range(8), [5, 6], [15, 16]), 2)
    assert find(tree, list(range(16)), narrow, wide).block_ids == [[NULL_BLOCK, 6], [11, 12]]
