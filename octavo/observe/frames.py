"""The engine's memory and queues at every step, replayed from its events.

    for frame in frames(events):          after each planned step: exactly what the engine's own bookkeeping says
        frame.tables[7]                   [[4, 9, 17]]     sequence 7: one cache group, three blocks
        frame.ref_counts[9]               2                sequences that hold block 9
        frame.nodes[9]                    its place in the prefix tree

    arrived ──▶ waiting ──▶ running ──▶ gone          a block is owned, or else cached if it is a node, or else free

Reports, pictures and the page are made from these frames alone. Events that no engine can have written are a LogError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from octavo.errors import LogError
from octavo.observe import events
from octavo.observe.events import Event
from octavo.observe.snapshot import SequenceState, Snapshot

NULL_BLOCK = 0


#: larger engines cannot be drawn
_MOST = {"num_blocks": 1 << 22, "block_size": 1 << 16, "num_groups": 1 << 10, "max_model_len": 1 << 26}


class Node(NamedTuple):
    """A block's place in the prefix tree. depth 0: the first block of a sequence. content: equal ones hold equal tokens
    from the start on. parent: the content before it; empty at depth 0, and where a window has passed it."""

    group: int
    depth: int
    content: bytes
    parent: bytes


@dataclass(slots=True)
class Grant:
    """What a step computes of a sequence: `num_tokens` tokens from position `start` on."""

    start: int
    num_tokens: int


class Frame:
    """One moment, which `follow` moves on by an event.

    step: the last one planned. tables: sequence -> cache group -> block ids, null behind a window. num_computed: tokens
    in the cache once the step is done. batch: what the step computes. request_of: of each sequence that has arrived and
    not ended. ref_counts: by block id.
    """

    def __init__(self, sizes: events.EngineStarted) -> None:
        self.sizes = sizes
        self.block_size = sizes.block_size
        self.step = 0
        self.tables: dict[int, list[list[int]]] = {}
        self.num_computed: dict[int, int] = {}
        self.batch: dict[int, Grant] = {}
        self.request_of: dict[int, str] = {}
        self.waiting: set[int] = set()
        self.running: set[int] = set()
        self.ref_counts = [0] * (sizes.num_blocks + 1)
        self.nodes: dict[int, Node] = {}
        self._forks: list[tuple[int, int]] = []  # parent and child, since the last step
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            events.Arrived: self._arrived,
            events.Started: self._started,
            events.PrefixHit: self._prefix_hit,
            events.BlocksGiven: self._blocks_given,
            events.BlocksPublished: self._published,
            events.Forked: self._forked,
            events.Unforked: self._unforked,
            events.BlockCopied: self._copied,
            events.BlocksFreed: self._freed,
            events.BlockEvicted: self._evicted,
            events.BlocksForgotten: self._forgotten,
            events.Preempted: self._preempted,
            events.Finished: self._finished,
            events.Scheduled: self._scheduled,
            Snapshot: self._begin_anew,
        }

    def follow(self, event: Event) -> None:
        """Other events change nothing that a frame has."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def owners(self) -> dict[int, list[tuple[int, int, int]]]:
        """Owned block -> (sequence, cache group, place in its table) of each owner."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        for sequence_id, tables in self.tables.items():
            for group, table in enumerate(tables):
                for place, block_id in enumerate(table):
                    if block_id != NULL_BLOCK:
                        found.setdefault(block_id, []).append((sequence_id, group, place))
        return found

    def filled(self, sequence_id: int, place: int) -> int:
        """How many slots of a sequence's block at this place hold a token of its once the step is done."""
        num_tokens = self.num_computed.get(sequence_id, 0) - place * self.block_size
        return min(max(num_tokens, 0), self.block_size)

    # One method for each kind of event

    def _begin_anew(self, event: Snapshot) -> None:
        """A log that has lost its beginning goes on from here."""
        for known in (self.tables, self.num_computed, self.batch, self.request_of, self.nodes, self._forks):
            known.clear()
        self.running, self.waiting = set(), set()
        self.ref_counts = [0] * len(self.ref_counts)
        self.step = event.step
        for one in event.sequences:
            self._go_on(one)
        for block_id, node in zip(event.tree_blocks, event.tree_nodes, strict=False):
            self._hold((block_id,), 0)
            self._check_group(node[0])
            self.nodes[block_id] = Node(*node) if node[1] else Node(*node[:3], b"")

    def _go_on(self, one: SequenceState) -> None:
        self.request_of[one.sequence_id] = one.request_id
        if one.row < 0 and not any(one.tables):
            self.waiting.add(one.sequence_id)
            return
        self._runs(one.sequence_id, one.request_id)
        self.num_computed[one.sequence_id] = one.num_computed
        for group, table in enumerate(one.tables):
            self._hold(table, 1)
            self._table(one.sequence_id, group).extend(table)

    def _arrived(self, event: events.Arrived) -> None:
        self.request_of[event.sequence_id] = event.request_id
        self.waiting.add(event.sequence_id)

    def _started(self, event: events.Started) -> None:
        self.waiting.discard(event.sequence_id)
        self._runs(event.sequence_id, event.request_id)

    def _runs(self, sequence_id: int, request_id: str) -> None:
        self.running.add(sequence_id)
        self.request_of[sequence_id] = request_id
        self.tables.setdefault(sequence_id, [[] for _ in range(self.sizes.num_groups)])
        self.num_computed.setdefault(sequence_id, 0)

    def _prefix_hit(self, event: events.PrefixHit) -> None:
        num_places, num_in_group = event.num_tokens // self.block_size, event.num_in_group or (len(event.block_ids),)
        fits = 0 <= num_places <= self.sizes.max_model_len and all(0 <= number <= num_places for number in num_in_group)
        if not fits or sum(num_in_group) != len(event.block_ids):
            raise LogError(f"a prefix hit of {event.num_tokens} tokens has {len(event.block_ids)} blocks")
        self._hold(event.block_ids, 1)
        start = 0
        for group, number in enumerate(num_in_group):
            found = event.block_ids[start : start + number]
            self._table(event.sequence_id, group)[:] = [NULL_BLOCK] * (num_places - number) + list(found)
            start += number
        self.num_computed[event.sequence_id] = event.num_tokens

    def _blocks_given(self, event: events.BlocksGiven) -> None:
        self._hold(event.block_ids, 1)
        self._table(event.sequence_id, event.group).extend(event.block_ids)

    def _forked(self, event: events.Forked) -> None:
        self._runs(event.sequence_id, event.request_id)
        self.tables[event.sequence_id] = [list(table) for table in self._tables_of(event.parent_id)]
        self.num_computed[event.sequence_id] = self.num_computed.get(event.parent_id, 0)
        for table in self.tables[event.sequence_id]:
            self._hold(table, 1)
        self._forks.append((event.parent_id, event.sequence_id))

    def _unforked(self, event: events.Unforked) -> None:
        self._leaves(event.sequence_id)

    def _copied(self, event: events.BlockCopied) -> None:
        for table in self._tables_of(event.sequence_id):
            if event.source in table:
                self._hold((event.source,), -1)
                self._hold((event.target,), 1)
                table[table.index(event.source)] = event.target
                return

    def _freed(self, event: events.BlocksFreed) -> None:
        table = self._table(event.sequence_id, event.group)
        gone = set(event.block_ids)
        self._hold([block_id for block_id in table if block_id in gone], -1)
        table[:] = [NULL_BLOCK if block_id in gone else block_id for block_id in table]
        if event.why != "window":
            table.clear()

    def _published(self, event: events.BlocksPublished) -> None:
        parent = self.nodes.get(event.parent)
        before, contents = parent.content if parent else b"", event.hashes
        if len(contents) != len(event.block_ids):
            raise LogError(f"{len(event.block_ids)} blocks are published with {len(contents)} hashes")
        self._hold(event.block_ids, 0)
        self._check_group(event.group)
        for depth, (block_id, content) in enumerate(zip(event.block_ids, contents, strict=True), event.first):
            if block_id != NULL_BLOCK and block_id not in self.nodes:
                self.nodes[block_id] = Node(event.group, depth, content, before)
            before = content

    def _evicted(self, event: events.BlockEvicted) -> None:
        self.nodes.pop(event.block_id, None)

    def _forgotten(self, event: events.BlocksForgotten) -> None:
        for block_id in list(self.nodes) if event.block_ids is None else event.block_ids:
            self.nodes.pop(block_id, None)

    def _preempted(self, event: events.Preempted) -> None:
        self.running.discard(event.sequence_id)
        self.waiting.add(event.sequence_id)
        self.num_computed[event.sequence_id] = 0

    def _finished(self, event: events.Finished) -> None:
        self._leaves(event.sequence_id)

    def _leaves(self, sequence_id: int) -> None:
        self.running.discard(sequence_id)
        self.waiting.discard(sequence_id)
        for table in self.tables.pop(sequence_id, []):
            self._hold(table, -1)  # nothing, but in a log that has lost a part
        self.num_computed.pop(sequence_id, None)
        self.request_of.pop(sequence_id, None)

    def _scheduled(self, event: events.Scheduled) -> None:
        columns = event.sequence_ids, event.num_computed, event.num_tokens
        if not len(columns[0]) == len(columns[1]) == len(columns[2]):
            raise LogError(f"step {event.step} has columns of different lengths")
        self.step = event.step
        self.batch = {one: Grant(start, number) for one, start, number in zip(*columns, strict=True)}
        for sequence_id, grant in self.batch.items():
            self.num_computed[sequence_id] = grant.start + grant.num_tokens
        for parent_id, child_id in self._forks:  # samples fork when the step is planned that computes the prompt's end
            if parent_id in self.batch and child_id not in self.batch and child_id in self.num_computed:
                self.num_computed[child_id] = self.num_computed[parent_id]
        self._forks.clear()

    def _tables_of(self, sequence_id: int) -> list[list[int]]:
        return self.tables.setdefault(sequence_id, [[] for _ in range(self.sizes.num_groups)])

    def _table(self, sequence_id: int, group: int) -> list[int]:
        self._check_group(group)
        return self._tables_of(sequence_id)[group]

    def _check_group(self, group: int) -> None:
        if not 0 <= group < self.sizes.num_groups:
            raise LogError(f"cache group {group} is named, the engine has {self.sizes.num_groups}")

    def _hold(self, block_ids: Iterable[int], change: int) -> None:
        """So many owners more of each of these blocks."""
        for block_id in block_ids:
            if not 0 <= block_id < len(self.ref_counts):
                raise LogError(f"block {block_id} is named, the engine has {self.sizes.num_blocks}")
            if block_id != NULL_BLOCK:
                self.ref_counts[block_id] += change


def frames(sizes: events.EngineStarted, log: Iterable[Event]) -> Iterator[Frame]:
    """The one frame, moved on, after each planned step, and once more after the last event."""
    check_sizes(sizes)
    frame = Frame(sizes)
    for event in log:
        frame.follow(event)
        if type(event) is events.Scheduled:
            yield frame
    frame.batch = {}
    yield frame


def check_sizes(sizes: events.EngineStarted) -> None:
    """Raise LogError for an engine that cannot be drawn, or whose sizes contradict each other."""
    for name, most in _MOST.items():
        value = getattr(sizes, name)
        if not 1 <= value <= most:
            raise LogError(f"the log's engine has a {name} of {value}, allowed is 1 to {most:,}")
    if len(sizes.windows) != sizes.num_groups:
        raise LogError(f"the log's engine has {sizes.num_groups} cache groups and {len(sizes.windows)} windows")
