"""The block pool and its prefix tree: which blocks of KV memory are in use, and which can be found by their content.

A block is in exactly one of three states, and moves only along the arrows:

             take                    release, content not findable
    free ────────────▶ owned ────────────────────────────────────▶ free
      ▲                 │ ▲
      │                 │ └───────────── share ──────────┐
      │                 └── release, content findable ──▶ cached
      └────────────────── evict, oldest first ────────────┘

    free     nothing worth finding; taken first
    cached   reference count 0, but still in the prefix tree
    owned    reference count 1 or more: in so many tables

A sequence releases its last block first. It holds the parents of its blocks too, so a parent is always released after
its children. So eviction in the order of release evicts a leaf before its parent.

Blocks of sequences that begin alike lie on one path of the tree; where they differ the path branches. A node is a
content hash, which holds its parent's, so a dictionary from hash to block is the whole tree:

    root ── [You are a helpful] ── [assistant. What is] ── [the capital of]      sequence 7
                                └─ [assistant. Sing me] ── [a song about ]       sequence 9

Each cache group has a tree of its own. Two sequences that compute the same content at the same time keep
their own copies, both listed under one node: replacing one would rewrite a table for a rare gain.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from octavo.cache.blocks import NULL_BLOCK, BlockId, BlockTables, CacheGroup, ContentHash
from octavo.observe.event_log import EventLog
from octavo.observe.events import BlockEvicted, BlocksForgotten


class BlockPool:
    """Owner of all reference counts. Block 0 is the null block and never leaves the pool. lent: how many of a block's
    owners are no sequences, but loans to and from other engines (block_loans.py)."""

    def __init__(self, num_blocks: int, tree: PrefixTree, events: EventLog, clock: Callable[[], float]) -> None:
        assert num_blocks >= 2, f"a pool of {num_blocks} has no block besides the null block"
        self.num_blocks = num_blocks
        self.ref_counts = [0] * num_blocks
        self.free: list[BlockId] = [BlockId(i) for i in range(num_blocks - 1, 0, -1)]
        self.cached: OrderedDict[BlockId, None] = OrderedDict()
        self.lent: Counter[BlockId] = Counter()
        self._tree = tree
        self._events = events
        self._clock = clock

    @property
    def num_available(self) -> int:
        """Blocks that `take` can hand out: free ones, and cached ones at the price of their content."""
        return len(self.free) + len(self.cached)

    @property
    def num_owned(self) -> int:
        return self.num_blocks - 1 - self.num_available

    def take(self, count: int) -> list[BlockId]:
        """Blocks for one owner each, content undefined."""
        assert count <= self.num_available, f"{count} blocks wanted, {self.num_available} available"
        while len(self.free) < count:
            self._evict_oldest()
        taken = [self.free.pop() for _ in range(count)]
        for block_id in taken:
            self.ref_counts[block_id] = 1
        return taken

    def share(self, block_id: BlockId) -> None:
        """One more owner of a block that is owned or cached."""
        if self.ref_counts[block_id] == 0:
            del self.cached[block_id]
        self.ref_counts[block_id] += 1

    def release(self, block_id: BlockId) -> None:
        """One owner fewer; the last one leaves the block cached if it can be found, else free."""
        count = self.ref_counts[block_id] - 1
        assert count >= 0, f"block {block_id} released more often than taken"
        self.ref_counts[block_id] = count
        if count == 0:
            if block_id in self._tree:
                self.cached[block_id] = None
            else:
                self.free.append(block_id)

    def forget(self) -> None:
        """Empty the prefix tree; cached blocks become free."""
        self._tree.clear()
        self.free.extend(self.cached)
        self.cached.clear()
        if self._events.is_on:
            self._events.write(BlocksForgotten(self._clock(), None))

    def unpublish(self, tables: BlockTables) -> None:
        """Take back what a sequence published and nobody else holds or continues."""
        removed = []
        for table in tables.block_ids:
            for index in range(tables.num_published - 1, tables.num_found - 1, -1):
                block_id = table[index]
                if block_id in self._tree:
                    if self.ref_counts[block_id] > 1 or not self._tree.is_leaf(block_id):
                        break
                    self._tree.remove(block_id)
                    removed.append(block_id)
        if removed and self._events.is_on:
            self._events.write(BlocksForgotten(self._clock(), tuple(removed)))

    def _evict_oldest(self) -> None:
        block_id, _ = self.cached.popitem(last=False)
        self._tree.remove(block_id)
        self.free.append(block_id)
        if self._events.is_on:
            self._events.write(BlockEvicted(self._clock(), block_id))


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """Blocks found for a sequence's first `num_tokens` tokens: per group, null where the window has passed."""

    num_tokens: int
    block_ids: list[list[BlockId]]


class Node(NamedTuple):
    """A place in the tree. depth 0: the first block of a sequence."""

    group: int
    depth: int
    content: ContentHash
    parent: ContentHash


class PrefixTree:
    """Full blocks by content. It does not know whether they are owned or may be evicted."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[int, ContentHash], list[BlockId]] = {}
        self.nodes: dict[BlockId, Node] = {}

    def __contains__(self, block_id: BlockId) -> bool:
        return block_id in self.nodes

    def publish(self, tables: BlockTables, num_blocks: int) -> None:
        """Enter a sequence's blocks up to `num_blocks`, all full. Blocks are published before a window drops them."""
        for group, table in enumerate(tables.block_ids):
            for index in range(tables.num_published, num_blocks):
                block_id = table[index]
                is_passed = block_id == NULL_BLOCK  # by the window; asked about again after the tree was emptied
                if not is_passed and block_id not in self.nodes:  # a fork may have entered the block they share
                    self.insert(block_id, Node(group, index, tables.hashes[index + 1], tables.hashes[index]))
        tables.num_published = num_blocks

    def insert(self, block_id: BlockId, node: Node) -> None:
        self.nodes[block_id] = node
        self._blocks.setdefault((node.group, node.content), []).append(block_id)

    def remove(self, block_id: BlockId) -> None:
        node = self.nodes.pop(block_id)
        copies = self._blocks[node.group, node.content]
        copies.remove(block_id)
        if not copies:
            del self._blocks[node.group, node.content]

    def clear(self) -> None:
        self.nodes.clear()
        self._blocks.clear()

    def find(self, group: int, content: ContentHash) -> BlockId | None:
        copies = self._blocks.get((group, content))
        return copies[0] if copies else None

    def is_leaf(self, block_id: BlockId) -> bool:
        """No block continues this one's content. Looks through the whole tree: for rare use."""
        group, _, content, _ = self.nodes[block_id]
        return not any(node.parent == content and node.group == group for node in self.nodes.values())

    def match(self, hashes: Sequence[ContentHash], groups: Sequence[CacheGroup], block_size: int) -> PrefixMatch:
        """The longest prefix that every group can continue from.

        A full-attention group needs all of its blocks, a sliding one those that the next token still sees.
        """
        num_blocks = len(hashes)
        for index, group in enumerate(groups):
            if group.window is None:
                num_blocks = self._run_len(index, hashes[:num_blocks])
        settled = 0
        while num_blocks and settled < len(groups):
            group = groups[settled]
            reach = num_blocks
            if group.window is not None:
                reach = self._reach(settled, group, hashes[:num_blocks], block_size)
            settled = settled + 1 if reach == num_blocks else 0
            num_blocks = reach
        return PrefixMatch(num_blocks * block_size, self._pick(hashes[:num_blocks], groups, block_size))

    def _run_len(self, group: int, hashes: Sequence[ContentHash]) -> int:
        """How many blocks from the start on are there without a gap."""
        blocks = self._blocks
        for index, content in enumerate(hashes):
            if (group, content) not in blocks:
                return index
        return len(hashes)

    def _reach(self, index: int, group: CacheGroup, hashes: Sequence[ContentHash], block_size: int) -> int:
        """The longest prefix whose last window of blocks is there without a gap."""
        end = position = len(hashes)
        while position > group.first_visible_block(end * block_size, block_size):
            position -= 1
            if (index, hashes[position]) not in self._blocks:
                end = position
        return end

    def _pick(
        self, hashes: Sequence[ContentHash], groups: Sequence[CacheGroup], block_size: int
    ) -> list[list[BlockId]]:
        picked = []
        for index, group in enumerate(groups):
            first = group.first_visible_block(len(hashes) * block_size, block_size)
            found = [self._blocks[index, content][0] for content in hashes[first:]]
            picked.append([NULL_BLOCK] * first + found)
        return picked
