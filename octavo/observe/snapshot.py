"""Snapshot: the event that says everything, so that a log can be followed from there on without those before it."""

from __future__ import annotations

from msgspec import Struct

from octavo.observe.events import Arrived, Event

#: a sequence's id, and a number that goes with it
Numbered = tuple[int, int]


class SequenceState(Struct, frozen=True, array_like=True, gc=False):
    """A sequence that has not ended; one that waits has row -1. tables: by group, its blocks; 0: behind the window. The
    rest is what a replay needs: see Sequence and BlockTables. num_hashes: -1 if the cache does not know it."""

    sequence_id: int
    request_id: str
    row: int
    num_tokens: int
    num_computed: int
    tables: tuple[tuple[int, ...], ...]
    num_pending: int = 0
    expected_len: int = 0
    num_hashes: int = -1
    first_visible: tuple[int, ...] = ()
    num_found: int = 0
    num_published: int = 0
    room: int = 0


class RequestState(Struct, frozen=True, array_like=True, gc=False):
    """num_made: its sequences so far, with those that have ended. num_reported: its prompt log-probabilities; -1: it is
    owed none."""

    num_made: int
    num_cached_tokens: int
    num_preemptions: int
    has_started: bool
    num_reported: int


class DraftState(Struct, frozen=True, array_like=True, gc=False):
    """A step that was planned and has no result: the columns of its plan, and the ids of its sequences."""

    step: int
    granted: tuple[int, ...]
    forked: tuple[int, ...]
    num_computed: tuple[int, ...]
    num_scheduled: tuple[int, ...]
    num_draws: tuple[int, ...]
    prompt_logprobs: tuple[int, ...]
    outdated: tuple[int, ...]


class SchedulerState(Struct, frozen=True, array_like=True, gc=False):
    """What the scheduler knows beside the sequences: all its decisions follow from both. requests: in the snapshot's
    order. Sequences are named by their ids. passes: of those that wait, in their order. suspects, accused: as in
    Quarantine."""

    requests: tuple[RequestState, ...]
    drafts: tuple[DraftState, ...]
    next_sequence_id: int
    empty_rows: tuple[int, ...]
    num_reserved: int
    vacated_rows: tuple[int, ...]
    passes: tuple[Numbered, ...]
    reasons: tuple[tuple[int, str], ...]
    unexplained: tuple[int, ...]
    forking: tuple[int, ...]
    awaiting_first: tuple[int, ...]
    mean_output_len: float
    num_ended: int
    suspects: tuple[Numbered, ...]
    accused: tuple[Numbered, ...]


class Snapshot(Event, frozen=True):
    """The engine between two events. step: the last one planned.

    requests: those that have not ended; of those that wait for their first step only the first ones, of num_waiting.
    sequences: theirs. cached: blocks that nobody owns but that can be found, the next to be evicted first. tree_blocks:
    all that can be found. tree_nodes: of each its group, its place in its sequence's table, its hash and its parent's.
    free: the blocks that hold nothing, the next to be taken last. scheduler: None if no replay can begin here, and then
    why_not says why.
    """

    step: int
    num_waiting: int
    requests: tuple[Arrived, ...]
    sequences: tuple[SequenceState, ...]
    cached: tuple[int, ...]
    tree_blocks: tuple[int, ...]
    tree_nodes: tuple[tuple[int, int, bytes, bytes], ...]
    free: tuple[int, ...] = ()
    scheduler: SchedulerState | None = None
    why_not: str = "it was written by a version that kept less"
