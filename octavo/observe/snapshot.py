"""Snapshot: the event that says everything, so that a log can be followed from there on without those before it."""

from __future__ import annotations

from msgspec import Struct

from octavo.observe.events import Arrived, Event


class SequenceState(Struct, frozen=True, array_like=True, gc=False):
    """A sequence that has not ended; one that waits has row -1. tables: by group, its blocks; 0: behind the window."""

    sequence_id: int
    request_id: str
    row: int
    num_tokens: int
    num_computed: int
    tables: tuple[tuple[int, ...], ...]


class Snapshot(Event, frozen=True):
    """The engine between two events. step: the last one planned.

    requests: those that have not ended; of those that wait for their first step only the first ones, of num_waiting.
    sequences: theirs. cached: blocks that nobody owns but that can be found, the next to be evicted first. tree_blocks:
    all that can be found. tree_nodes: of each its group, its place in its sequence's table, its hash and its parent's.
    """

    step: int
    num_waiting: int
    requests: tuple[Arrived, ...]
    sequences: tuple[SequenceState, ...]
    cached: tuple[int, ...]
    tree_blocks: tuple[int, ...]
    tree_nodes: tuple[tuple[int, int, bytes, bytes], ...]
