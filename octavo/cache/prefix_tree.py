"""The prefix tree: which full blocks can be found by what they contain.

Blocks of sequences that begin alike lie on one path; where they differ the path branches. A node is a
content hash, which holds its parent's, so a dictionary from hash to block is the whole tree:

    root ── [You are a helpful] ── [assistant. What is] ── [the capital of]      sequence 7
                                └─ [assistant. Sing me] ── [a song about ]       sequence 9

Each cache group has a tree of its own. Two sequences that compute the same content at the same time keep
their own copies, both listed under one node: replacing one would rewrite a table for a rare gain.

The tree only knows names. Whether a block is owned or may be evicted is the pool's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from octavo.cache.block import NULL_BLOCK, BlockId, ContentHash
from octavo.cache.block_table import BlockTables
from octavo.cache.groups import CacheGroup


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
    """Full blocks by content."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[int, ContentHash], list[BlockId]] = {}
        self.nodes: dict[BlockId, Node] = {}

    def __contains__(self, block_id: BlockId) -> bool:
        return block_id in self.nodes

    def publish(self, tables: BlockTables, num_blocks: int) -> None:
        """Enter a sequence's blocks up to `num_blocks`, all full. Blocks are published before a window drops them."""
        for group, table in enumerate(tables.block_ids):
            for index in range(tables.num_published, num_blocks):
                if table[index] not in self.nodes:  # a fork may have entered the block they share
                    self._insert(table[index], Node(group, index, tables.hashes[index + 1], tables.hashes[index]))
        tables.num_published = num_blocks

    def remove(self, block_id: BlockId) -> None:
        node = self.nodes.pop(block_id)
        copies = self._blocks[node.group, node.content]
        copies.remove(block_id)
        if not copies:
            del self._blocks[node.group, node.content]

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

    def _insert(self, block_id: BlockId, node: Node) -> None:
        self.nodes[block_id] = node
        self._blocks.setdefault((node.group, node.content), []).append(block_id)

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
