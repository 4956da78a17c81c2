"""Block tables: where one sequence's tokens lie.

One table per cache group, all equally long; entry i of each holds tokens i*block_size onwards:

    tokens           0..15   16..31   32..47   48..
    group 0 (full)     4       9       17       3        3 may be shared with a fork until someone writes
    group 1 (window)   0       0       12       8        0: null, behind the window, given back

    num_hashed = 3 full blocks named         room = 64 tokens may be written without asking again
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.cache.block import BlockId, ContentHash


@dataclass(slots=True, eq=False)
class BlockTables:
    """A sequence's tables, and what is known about them.

    hashes: the chain of content hashes of its full blocks, as far as computed; hashes[0] is the root.
    num_found: leading blocks that came from the prefix tree. num_published: leading blocks offered to it.
    first_visible: per group, entries before it are null.
    room: tokens up to which the sequence may write: so many slots are its own, none of them shared.
    """

    hashes: list[ContentHash]
    block_ids: list[list[BlockId]]
    first_visible: list[int]
    num_found: int = 0
    num_published: int = 0
    room: int = 0

    @property
    def num_blocks(self) -> int:
        return len(self.block_ids[0])

    def clear(self) -> None:
        """Hold nothing, but keep the hashes: the sequence may come back."""
        for group, table in enumerate(self.block_ids):
            table.clear()
            self.first_visible[group] = 0
        self.num_found = self.num_published = self.room = 0
