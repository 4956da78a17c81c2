"""Blocks move between free, cached and owned; eviction is oldest first."""

import pytest

from octavo.cache.block import Root
from octavo.cache.block_pool import BlockPool
from octavo.cache.block_table import BlockTables
from octavo.cache.prefix_tree import PrefixTree


@pytest.fixture
def tree():
    return PrefixTree()


@pytest.fixture
def evicted():
    return []


@pytest.fixture
def pool(tree, evicted):
    return BlockPool(6, tree, evicted.append)  # blocks 1 to 5 beside the null block


def publish(tree, block_ids, token_ids):
    """Name blocks of two tokens each."""
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
    for block_id in [*reversed(old), *reversed(new)]:  # as sequences let go: last block first
        pool.release(block_id)
    pool.take(5)
    assert evicted == [old[1], old[0], new[1], new[0]]


def test_releasing_too_often_is_caught(pool):
    (block_id,) = pool.take(1)
    pool.release(block_id)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(block_id)
