"""KVCache: all that the scheduler asks of block bookkeeping.

    start   a sequence gets tables, beginning with what the prefix tree already holds
    grow    room for its next tokens: fresh blocks, and a private copy of a shared block before a write
    fork    a child shares all its parent's blocks; nothing is copied. `fork_again` is for a child that has blocks
    free    it lets go of everything; full blocks stay findable until evicted

Full blocks are published when the step that fills them is planned, not when it is done: a layer writes all
keys and values of a step before it reads any, so a sequence may find in a step what another computes in it.

Block writes and copies are collected for the worker, and taken with each plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Listlike

from octavo.cache.block_pool import BlockPool, PrefixMatch, PrefixTree
from octavo.cache.blocks import NULL_BLOCK, BlockId, BlockTables, CacheGroup, Root, live
from octavo.messages import BlockWrite
from octavo.observe.event_log import EventLog
from octavo.observe.events import (
    BlockCopied,
    BlocksFreed,
    BlocksGiven,
    BlocksPublished,
    Forked,
    PrefixHit,
    SoughtInVain,
    Unforked,
)
from octavo.request import Sequence, SequenceId


class KVCache:
    """Owner of the pool, the prefix tree and every sequence's tables."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        groups: Listlike[CacheGroup],
        enable_prefix_caching: bool = True,
        events: EventLog,
        clock: Callable[[], float],
    ) -> None:
        self.block_size = block_size
        self.groups = tuple(groups)
        self.enable_prefix_caching = enable_prefix_caching
        self._has_windows = any(group.window is not None for group in groups)
        self.tree = PrefixTree()
        self._events = events
        self._clock = clock
        self.pool = BlockPool(num_blocks, self.tree, events, clock)
        self.tables: dict[SequenceId, BlockTables] = {}
        self._writes: list[BlockWrite] = []
        self._copies: list[tuple[int, int]] = []

    # What would fit

    @property
    def num_available_blocks(self) -> int:
        """Blocks nobody owns; some of them may have to be evicted first."""
        return self.pool.num_available

    def max_blocks(self, num_tokens: int, chunk_len: int) -> int:
        """Most blocks one sequence of `num_tokens` holds at once, over all groups."""
        return sum(group.max_blocks(num_tokens, chunk_len, self.block_size) for group in self.groups)

    def num_blocks_to_grow(self, num_tokens: int) -> int:
        """About how many blocks so many more tokens take, of however many sequences. Groups with a window give back
        what they take."""
        return sum(group.window is None for group in self.groups) * -(-num_tokens // self.block_size)

    def num_blocks_for_next(self, sequences: Listlike[Sequence]) -> int:
        """Blocks that these sequences take to compute one more token each. Of those that share the block it is written
        to, all copy it but the last, to which it is left."""
        num_fresh, num_writers = 0, Counter[BlockId]()
        for sequence in sequences:
            tables, position = self.tables[sequence.sequence_id], sequence.num_computed_tokens
            self._give_back_behind_window(tables, sequence)
            if position >= tables.num_blocks * self.block_size:
                num_fresh += len(self.groups)
            else:
                num_writers.update(table[position // self.block_size] for table in tables.block_ids)
        counts = self.pool.ref_counts
        return num_fresh + sum(min(num, counts[block_id] - 1) for block_id, num in num_writers.items())

    def find_prefix(self, sequence: Sequence, max_tokens: int) -> PrefixMatch:
        """The longest cached prefix, whole blocks of at most `max_tokens` tokens."""
        tables = self._tables_of(sequence)
        num_blocks = max_tokens // self.block_size if self.enable_prefix_caching else 0
        tables.extend_hashes(sequence.token_ids, num_blocks, self.block_size)
        return self.tree.match(tables.hashes[1 : num_blocks + 1], self.groups, self.block_size)

    def num_blocks_to_start(self, sequence: Sequence, match: PrefixMatch, chunk_len: int) -> int:
        """Available blocks that the whole of a sequence takes up, found ones that nobody owns included."""
        num_shared = sum(self.pool.ref_counts[block_id] > 0 for block_id in live(match.block_ids))
        return self.max_blocks(sequence.num_tokens, chunk_len) - num_shared

    # What happens to a sequence

    def start(self, sequence: Sequence, match: PrefixMatch) -> None:
        """Give a sequence its tables, beginning with the found blocks; they count as computed."""
        tables = self._tables_of(sequence)
        assert not tables.num_blocks, f"sequence {sequence.sequence_id} started twice"
        sequence.num_computed_tokens = match.num_tokens
        tables.room = match.num_tokens
        tables.num_found = tables.num_published = match.num_tokens // self.block_size
        for index, found in enumerate(match.block_ids):
            first = self.groups[index].first_visible_block(match.num_tokens, self.block_size)
            tables.block_ids[index].extend(found)
            tables.first_visible[index] = first
            for block_id in found[first:]:
                self.pool.share(block_id)
            if match.num_tokens:
                self._writes.append(BlockWrite(sequence.row, index, first, [*found[first:]]))
        if self._events.is_on and match.num_tokens:
            self._events.write(PrefixHit(self._clock(), sequence.sequence_id, match.num_tokens, *_found(match)))

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for the next `num_tokens` tokens. False: not enough blocks, and none were taken."""
        tables = self.tables[sequence.sequence_id]
        start = sequence.num_computed_tokens
        if self._has_windows:
            self._give_back_behind_window(tables, sequence)
        num_held = tables.num_blocks
        num_new = max(0, -(-(start + num_tokens) // self.block_size) - num_held)
        shared = self._shared_groups(tables, start) if start < num_held * self.block_size else []
        if num_new * len(self.groups) + len(shared) > self.pool.num_available:
            return False
        for group in shared:
            self._copy_on_write(tables, sequence, group, start // self.block_size)
        if num_new:
            for group, table in enumerate(tables.block_ids):
                fresh = self.pool.take(num_new)
                self._writes.append(BlockWrite(sequence.row, group, len(table), [*fresh]))
                table.extend(fresh)
                if self._events.is_on:
                    self._events.write(BlocksGiven(self._clock(), sequence.sequence_id, group, tuple(fresh)))
        tables.room = tables.num_blocks * self.block_size
        self._publish(tables, sequence, start + num_tokens)
        return True

    def rewind(self, sequence: Sequence, num_tokens: int) -> bool:
        """Count no more than `num_tokens` tokens as computed: other tokens came than were computed beyond them. Blocks
        there stay the sequence's own, to be written again; it must ask before it does. False: a window has passed the
        blocks that it would read from there."""
        if sequence.num_computed_tokens <= num_tokens:
            return True
        sequence.num_computed_tokens = num_tokens
        return self.tables[sequence.sequence_id].rewind(num_tokens, self.groups, self.block_size)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """The child's tables become copies of the parent's. Both must ask before they write again."""
        tables = self.tables[parent.sequence_id]
        shared = live(tables.block_ids)
        for block_id in shared:
            self.pool.share(block_id)
        self.tables[child.sequence_id] = tables.fork(room=parent.num_computed_tokens)
        if self._events.is_on:
            ids = parent.sequence_id, child.sequence_id, child.request.request_id
            self._events.write(Forked(self._clock(), *ids, len(shared)))

    def fork_again(self, parent: Sequence, child: Sequence) -> None:
        """The child lets go of its own blocks and shares its parent's."""
        self.unfork(child)
        self.fork(parent, child)

    def unfork(self, child: Sequence) -> None:
        """A beam is given up, and lets go of its blocks."""
        self.free(child, "dropped")
        if self._events.is_on:
            self._events.write(Unforked(self._clock(), child.sequence_id, child.request.request_id))

    def free(self, sequence: Sequence, why: str) -> None:
        """Let go of all blocks, last first. Preempted: the sequence comes back. Error: content not trusted."""
        tables = self.tables.get(sequence.sequence_id)
        if tables is None:
            return
        if why == "error":
            self.pool.unpublish(tables)
        else:
            self._publish(tables, sequence, sequence.num_computed_tokens)
        if not tables.num_blocks:
            self._log_sought(sequence, tables, why)
        else:
            for group, first in enumerate(tables.first_visible):
                self._log_freed(sequence, group, tables.block_ids[group][first:], why)
        for entries in zip(*(reversed(table) for table in tables.block_ids), strict=True):
            for block_id in entries:
                if block_id != NULL_BLOCK:
                    self.pool.release(block_id)
        tables.clear()
        if why != "preempted":
            del self.tables[sequence.sequence_id]

    def drop_hashes(self, sequence: Sequence) -> None:
        """A sequence that has no blocks comes back with other tokens."""
        self.tables.pop(sequence.sequence_id, None)

    def forget(self) -> None:
        """Empty the prefix tree. Blocks in use stay with their owners and are entered again when these grow."""
        self.pool.forget()
        for tables in self.tables.values():
            tables.num_found = tables.num_published = 0

    def take_changes(self) -> tuple[list[BlockWrite], list[tuple[int, int]]]:
        """Block writes and copies since the last call, for the plan."""
        changes = self._writes, self._copies
        self._writes, self._copies = [], []
        return changes

    def _tables_of(self, sequence: Sequence) -> BlockTables:
        tables = self.tables.get(sequence.sequence_id)
        if tables is None:
            tables = BlockTables.empty(Root.of(sequence.request).hash(), len(self.groups))
            self.tables[sequence.sequence_id] = tables
        return tables

    def _shared_groups(self, tables: BlockTables, position: int) -> list[int]:
        """Groups whose block at `position` exists and has other owners."""
        index = position // self.block_size
        if index >= tables.num_blocks:
            return []
        ref_counts = self.pool.ref_counts
        return [group for group, table in enumerate(tables.block_ids) if ref_counts[table[index]] > 1]

    def _copy_on_write(self, tables: BlockTables, sequence: Sequence, group: int, index: int) -> None:
        source = tables.block_ids[group][index]
        num_sharers = self.pool.ref_counts[source]
        (target,) = self.pool.take(1)
        self.pool.release(source)
        tables.block_ids[group][index] = target
        self._copies.append((source, target))
        self._writes.append(BlockWrite(sequence.row, group, index, [target]))
        if self._events.is_on:
            self._events.write(BlockCopied(self._clock(), sequence.sequence_id, source, target, num_sharers))

    def _give_back_behind_window(self, tables: BlockTables, sequence: Sequence) -> None:
        for group, shape in enumerate(self.groups):
            if shape.window is None:
                continue
            table, old = tables.block_ids[group], tables.first_visible[group]
            first = min(shape.first_visible_block(sequence.num_computed_tokens, self.block_size), len(table))
            if first <= old:
                continue
            self._publish(tables, sequence, sequence.num_computed_tokens)
            passed = table[old:first]
            table[old:first] = [NULL_BLOCK] * len(passed)
            tables.first_visible[group] = first
            for block_id in reversed(passed):
                self.pool.release(block_id)
            self._log_freed(sequence, group, passed, "window")

    def _publish(self, tables: BlockTables, sequence: Sequence, num_computed: int) -> None:
        """Enter the blocks that are full once `num_computed` tokens are computed into the prefix tree; a block whose
        last token is still being drawn has no name yet."""
        first, num_full = tables.num_published, min(num_computed, sequence.num_tokens) // self.block_size
        if num_full > first and self.enable_prefix_caching:
            tables.extend_hashes(sequence.token_ids, num_full, self.block_size)
            self.tree.publish(tables, num_full)
            if self._events.is_on:
                hashes = tuple(tables.hashes[first + 1 : num_full + 1])
                for group, table in enumerate(tables.block_ids):
                    parent = table[first - 1] if first else NULL_BLOCK
                    ids = sequence.sequence_id, group, parent, tuple(table[first:num_full])
                    self._events.write(BlocksPublished(self._clock(), *ids, first, hashes))

    def _log_sought(self, sequence: Sequence, tables: BlockTables, why: str) -> None:
        if self._events.is_on and why != "preempted" and len(tables.hashes) > 1:
            hashes = tuple(tables.hashes[1:])
            self._events.write(SoughtInVain(self._clock(), sequence.sequence_id, hashes))

    def _log_freed(self, sequence: Sequence, group: int, block_ids: list[BlockId], why: str) -> None:
        if self._events.is_on:
            self._events.write(BlocksFreed(self._clock(), sequence.sequence_id, group, tuple(block_ids), why))


def _found(match: PrefixMatch) -> tuple[tuple[BlockId, ...], tuple[int, ...]]:
    """The blocks of a match, and how many of them each group has; the last is empty for one group."""
    in_groups = [live([table]) for table in match.block_ids]
    return tuple(live(match.block_ids)), tuple(map(len, in_groups)) if len(in_groups) > 1 else ()
