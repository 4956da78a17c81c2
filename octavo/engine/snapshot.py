"""The engine's whole state as one event, with which the ring of events begins a new half."""

from __future__ import annotations

from itertools import islice

from octavo.cache.blocks import BlockTables
from octavo.cache.kv_cache import KVCache
from octavo.observe.snapshot import SequenceState, Snapshot
from octavo.request import Sequence
from octavo.scheduler.places import arrival_of
from octavo.scheduler.saved_state import state_of, why_no_replay
from octavo.scheduler.scheduler import Scheduler

#: requests without blocks that a snapshot names; a queue may be long, and a step must not wait for it
MAX_WAITING = 500


def take_snapshot(time: float, scheduler: Scheduler, cache: KVCache) -> Snapshot:
    sequences = scheduler.sequences
    holding = [one for one in sequences if one.row >= 0]
    waiting = islice((one for one in sequences if one.row < 0), MAX_WAITING)
    named = sorted([*holding, *waiting], key=lambda one: one.sequence_id)
    requests = {one.request.request_id: one.request for one in named}
    tree = cache.tree.nodes
    why_not = why_no_replay(scheduler, len(named)) or ("blocks were on loan" if cache.pool.lent else "")
    return Snapshot(
        time=time,
        step=scheduler.num_steps,
        num_waiting=scheduler.num_waiting,
        requests=tuple([arrival_of(request, request.arrival_time) for request in requests.values()]),
        sequences=tuple([_state_of(one, cache.tables.get(one.sequence_id)) for one in named]),
        cached=tuple(cache.pool.cached),
        tree_blocks=tuple(tree),
        tree_nodes=tuple(tree.values()),
        free=() if why_not else tuple(cache.pool.free),
        scheduler=None if why_not else state_of(scheduler, requests.values()),
        why_not=why_not,
    )


def _state_of(sequence: Sequence, tables: BlockTables | None) -> SequenceState:
    return SequenceState(
        sequence_id=sequence.sequence_id,
        request_id=sequence.request.request_id,
        row=sequence.row,
        num_tokens=sequence.num_tokens,
        num_computed=sequence.num_computed_tokens,
        tables=() if tables is None else tuple([tuple(table) for table in tables.block_ids]),
        num_pending=sequence.num_pending,
        expected_len=sequence.expected_len,
        num_hashes=-1 if tables is None else len(tables.hashes) - 1,
        first_visible=() if tables is None else tuple(tables.first_visible),
        num_found=0 if tables is None else tables.num_found,
        num_published=0 if tables is None else tables.num_published,
        room=0 if tables is None else tables.room,
    )
