"""The engine's whole state as one event, with which the ring of events begins a new half."""

from __future__ import annotations

from itertools import islice

from octavo.cache.blocks import BlockTables
from octavo.cache.kv_cache import KVCache
from octavo.observe.snapshot import SequenceState, Snapshot
from octavo.request import Sequence
from octavo.scheduler.places import arrival_of
from octavo.scheduler.scheduler import Scheduler

#: requests without blocks that a snapshot names; a queue may be long, and a step must not wait for it
MAX_WAITING = 500


def take_snapshot(time: float, scheduler: Scheduler, cache: KVCache) -> Snapshot:
    sequences = scheduler.sequences
    holding = [one for one in sequences if one.row >= 0]
    waiting = islice((one for one in sequences if one.row < 0), MAX_WAITING)
    named = [*holding, *waiting]
    requests = {one.request.request_id: one.request for one in named}
    tree = cache.tree.nodes
    return Snapshot(
        time=time,
        step=scheduler.num_steps,
        num_waiting=scheduler.num_waiting,
        requests=tuple([arrival_of(request, request.arrival_time) for request in requests.values()]),
        sequences=tuple([_state_of(one, cache.tables.get(one.sequence_id)) for one in named]),
        cached=tuple(cache.pool.cached),
        tree_blocks=tuple(tree),
        tree_nodes=tuple(tree.values()),
    )


def _state_of(sequence: Sequence, tables: BlockTables | None) -> SequenceState:
    return SequenceState(
        sequence_id=sequence.sequence_id,
        request_id=sequence.request.request_id,
        row=sequence.row,
        num_tokens=sequence.num_tokens,
        num_computed=sequence.num_computed_tokens,
        tables=() if tables is None else tuple([tuple(table) for table in tables.block_ids]),
    )
