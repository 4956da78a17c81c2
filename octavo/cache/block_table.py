"""Block tables: where one sequence's tokens lie.

One table per cache group, all equally long; entry i of each holds tokens i*block_size onwards:

    tokens            0..15   16..31   32..47   48..63
    group 0, full       4        9       17        3       3 may be shared with a fork until someone writes
    group 1, window     0        0       12        8       0: null, behind the window, given back

    num_published = 3: the full ones are in the prefix tree
    room = 64: so many tokens may be written without asking again; less while a fork shares block 3
"""

from __future__ import annotations

from collections.abc import Sequence as Listlike
from dataclasses import dataclass

from octavo.cache.block import BlockId, ContentHash, chain_hash


@dataclass(slots=True, eq=False)
class BlockTables:
    """A sequence's tables, and what is known about them.

    hashes: root, then the content hash of each full block, as far as anyone has asked.
    first_visible: per group, entries before it are null.
    num_found: leading blocks that came from the prefix tree. num_published: leading blocks that are in it.
    """

    hashes: list[ContentHash]
    block_ids: list[list[BlockId]]
    first_visible: list[int]
    num_found: int = 0
    num_published: int = 0
    room: int = 0

    @classmethod
    def empty(cls, root: ContentHash, num_groups: int) -> BlockTables:
        return cls([root], [[] for _ in range(num_groups)], [0] * num_groups)

    @property
    def num_blocks(self) -> int:
        return len(self.block_ids[0])

    def extend_hashes(self, token_ids: Listlike[int], num_blocks: int, block_size: int) -> None:
        """Know the hashes of the first `num_blocks` blocks."""
        for index in range(len(self.hashes) - 1, num_blocks):
            tokens = token_ids[index * block_size : (index + 1) * block_size]
            self.hashes.append(chain_hash(self.hashes[-1], tokens))

    def fork(self, room: int) -> BlockTables:
        """The same blocks for a child; neither may write past `room` without asking."""
        self.room = room
        return BlockTables(
            hashes=list(self.hashes),
            block_ids=[list(table) for table in self.block_ids],
            first_visible=list(self.first_visible),
            num_found=self.num_published,
            num_published=self.num_published,
            room=room,
        )

    def clear(self) -> None:
        """Hold nothing, but keep the hashes: the sequence may come back."""
        for table in self.block_ids:
            table.clear()
        self.first_visible = [0] * len(self.block_ids)
        self.num_found = self.num_published = self.room = 0
