"""BlockLoans: KV blocks that are on their way to another engine's pool, or have been taken for what comes from one.

    lend      blocks of a prompt, found by their hashes, are kept as they are until they have been read
    borrow    blocks are taken for content that is named, and not there yet; nobody can find them
    settle    the end: lent blocks are let go of; borrowed ones can be found from now on, or are free again

A loan counts as an owner of its blocks (`BlockPool.lent`), so none is evicted or written meanwhile.

    hashes      root  h1  h2  h3  h4  h5        the one that borrows has found two, the other one has five:
    full        ···   4   9   →   →   →         it keeps 4 and 9 too, since content can be found only behind its parent
    window      ···   0   0   0   →   →         what the next token does not see stays behind
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from octavo.cache.block_pool import Node
from octavo.cache.blocks import NULL_BLOCK, BlockId, CacheGroup, ContentHash
from octavo.cache.kv_cache import KVCache
from octavo.observe.event_log import EventLog
from octavo.observe.events import BlocksPublished


class Part(NamedTuple):
    """Consecutive blocks of one cache group, from the place `first` of a table on."""

    group: int
    first: int
    block_ids: tuple[BlockId, ...]


@dataclass(slots=True, eq=False)
class Loan:
    """hashes: the root, then those of the blocks. parts: the blocks that travel, group after group. kept: those before
    them, which are let go of last. sequence_id: the one that borrows for itself; None: these are lent."""

    hashes: Sequence[ContentHash]
    parts: tuple[Part, ...]
    kept: tuple[BlockId, ...] = ()
    sequence_id: int | None = None
    is_settled: bool = field(default=False, init=False)

    @property
    def block_ids(self) -> list[BlockId]:
        return [block_id for part in self.parts for block_id in part.block_ids]


class BlockLoans:
    """Owner of the loans of one cache. Only the engine's thread may call it."""

    def __init__(self, cache: KVCache, events: EventLog, clock: Callable[[], float]) -> None:
        self._cache = cache
        self._events = events
        self._clock = clock

    def lend(self, hashes: Sequence[ContentHash], num_held: int) -> Loan | None:
        """The blocks of a prompt that one lacks who holds the first `num_held`. None: there are no more than those."""
        match = self._cache.tree.match(hashes[1:], self._cache.groups, self._size)
        num_blocks = match.num_tokens // self._size
        if num_blocks <= num_held:
            return None
        firsts = first_places(self._cache.groups, self._size, num_held, num_blocks)
        parts = [Part(group, first, tuple(match.block_ids[group][first:])) for group, first in enumerate(firsts)]
        kept = self._kept(hashes, firsts, num_blocks)
        assert kept is not None, "all of a match can be found"
        loan = Loan(hashes[: num_blocks + 1], tuple(part for part in parts if part.block_ids), tuple(kept))
        for block_id in (*loan.block_ids, *kept):
            self._hold(block_id)
        return loan

    def borrow(self, sequence_id: int, hashes: Sequence[ContentHash], num_held: int, num_blocks: int) -> Loan | None:
        """Blocks for the content of a prompt's first `num_blocks`, of which the first `num_held` were found. None: too
        few are available, or what was found has been evicted since."""
        pool = self._cache.pool
        firsts = first_places(self._cache.groups, self._size, num_held, num_blocks)
        kept = self._kept(hashes, firsts, num_blocks)
        if kept is None:
            return None
        for block_id in kept:
            self._hold(block_id)
        if sum(num_blocks - first for first in firsts) > pool.num_available:
            self._let_go(kept)
            return None
        parts = []
        for group, first in enumerate(firsts):
            taken = pool.take(num_blocks - first)
            parts.append(Part(group, first, tuple(taken)))
            pool.lent.update(taken)
        return Loan(hashes[: num_blocks + 1], tuple(parts), tuple(kept), sequence_id)

    def settle(self, loan: Loan, *, is_whole: bool) -> None:
        """The end of a loan. is_whole: borrowed blocks hold what they were taken for."""
        assert not loan.is_settled, "a loan is settled once"
        loan.is_settled = True
        if is_whole and loan.sequence_id is not None and self._cache.enable_prefix_caching:
            for part in loan.parts:
                self._publish(loan, loan.sequence_id, part)
        for part in loan.parts:
            self._let_go(part.block_ids)
        self._let_go(loan.kept)

    @property
    def _size(self) -> int:
        return self._cache.block_size

    def _kept(self, hashes: Sequence[ContentHash], firsts: Sequence[int], num_blocks: int) -> list[BlockId] | None:
        """The found blocks before those that come, as far as the next token sees them."""
        kept = []
        for group, (shape, first) in enumerate(zip(self._cache.groups, firsts, strict=True)):
            for index in range(shape.first_visible_block(num_blocks * self._size, self._size), first):
                found = self._cache.tree.find(group, hashes[index + 1])
                if found is None:
                    return None
                kept.append(found)
        return kept

    def _publish(self, loan: Loan, sequence_id: int, part: Part) -> None:
        """Enter a part into the prefix tree, unless the tree has lost its parent."""
        tree, group, first = self._cache.tree, part.group, part.first
        parent = tree.find(group, loan.hashes[first]) if first else None
        if parent is None and first and self._cache.groups[group].window is None:
            return  # the tree was emptied meanwhile
        for index, block_id in enumerate(part.block_ids, first):
            tree.insert(block_id, Node(group, index, loan.hashes[index + 1], loan.hashes[index]))
        if self._events.is_on:
            hashes = tuple(loan.hashes[first + 1 : first + 1 + len(part.block_ids)])
            ids = sequence_id, group, parent or NULL_BLOCK, part.block_ids
            self._events.write(BlocksPublished(self._clock(), *ids, first, hashes))

    def _hold(self, block_id: BlockId) -> None:
        self._cache.pool.share(block_id)
        self._cache.pool.lent[block_id] += 1

    def _let_go(self, block_ids: Sequence[BlockId]) -> None:
        """Last first, so that a block is evicted before its parent."""
        pool = self._cache.pool
        for block_id in reversed(block_ids):
            pool.lent[block_id] -= 1
            if not pool.lent[block_id]:
                del pool.lent[block_id]
            pool.release(block_id)


def first_places(groups: Sequence[CacheGroup], block_size: int, num_held: int, num_blocks: int) -> list[int]:
    """Of each cache group, the first of the blocks up to `num_blocks` that one lacks who holds the first `num_held`.
    Blocks behind its window are none that it lacks."""
    return [max(num_held, group.first_visible_block(num_blocks * block_size, block_size)) for group in groups]
