"""The block pool: every block of KV memory, and who has it.

A block is in exactly one of three states, and moves only along the arrows:

             take                    release, content not findable
    free ────────────▶ owned ────────────────────────────────────▶ free
      ▲                 │ ▲
      │                 │ └───────────── share ──────────┐
      │                 └── release, content findable ──▶ cached
      └────────────────── evict, oldest first ────────────┘

    free     nothing worth finding; taken first
    cached   nobody's (reference count 0) but still in the prefix tree
    owned    reference count 1 or more: in so many tables

A sequence releases its last block first. Whoever holds a block holds its parent too, so a parent is always
released after its children, and evicting in the order of release evicts leaves before what they grow from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from octavo.cache.block import BlockId
from octavo.cache.prefix_tree import PrefixTree


class BlockPool:
    """Owner of all reference counts. Block 0 is the null block and never leaves the pool."""

    def __init__(self, num_blocks: int, tree: PrefixTree, on_evict: Callable[[BlockId], None]) -> None:
        assert num_blocks >= 2, f"a pool of {num_blocks} has no block besides the null block"
        self.num_blocks = num_blocks
        self.ref_counts = [0] * num_blocks
        self.free: list[BlockId] = [BlockId(i) for i in range(num_blocks - 1, 0, -1)]
        self.cached: OrderedDict[BlockId, None] = OrderedDict()
        self._tree = tree
        self._on_evict = on_evict

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

    def forget_cached(self) -> None:
        """Cached blocks become free, now that the prefix tree is empty."""
        assert not self._tree.nodes, "blocks can still be found"
        self.free.extend(self.cached)
        self.cached.clear()

    def _evict_oldest(self) -> None:
        block_id, _ = self.cached.popitem(last=False)
        self._tree.remove(block_id)
        self.free.append(block_id)
        self._on_evict(block_id)
