"""A recorded engine as it was at a snapshot: a replay goes on from there without the events before.

tables, free list, order of eviction     as they were; reference counts follow from the tables
prefix tree                              its places, under the hashes that the replay's tokens have
requests, sequences                      with tokens that are alike where the recorded ones were
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import zip_longest
from typing import Any

from msgspec import Struct

from octavo.cache.block_pool import Node
from octavo.cache.blocks import NULL_BLOCK, BlockId, BlockTables, ContentHash, Root, chain_hash
from octavo.cache.invariants import check
from octavo.cache.kv_cache import KVCache
from octavo.engine.snapshot import take_snapshot
from octavo.errors import LogError, OctavoError
from octavo.observe.snapshot import RequestState, SchedulerState, Snapshot
from octavo.observe.snapshot import SequenceState as SavedSequence
from octavo.request import Request, Sequence, SequenceId, SequenceState
from octavo.scheduler.saved_state import ended_sequence, restore
from octavo.scheduler.scheduler import Scheduler
from octavo.shown import cut
from octavo.simulator.recorded_engine import MOST_SEQS
from octavo.simulator.replayed_tokens import ReplayedTokens


def restore_engine(
    snapshot: Snapshot, state: SchedulerState, tokens: ReplayedTokens, scheduler: Scheduler, cache: KVCache
) -> None:
    """scheduler and cache: new ones. state: the snapshot's. Raises LogError for a state that no engine can have."""
    most_tokens = tokens.most_tokens
    lens = [one.num_tokens for one in snapshot.sequences] + [one.num_prompt_tokens for one in snapshot.requests]
    places = [depth * cache.block_size for _, depth, *_ in snapshot.tree_nodes]
    if not all(0 <= one <= most_tokens for one in (*lens, *places)):
        raise LogError(f"the log's snapshot has sequences of other lengths than 0 to {most_tokens:,} tokens")
    if not all(0 <= one.num_made <= MOST_SEQS for one in state.requests):
        raise LogError(f"the log's snapshot has requests of other numbers of sequences than 0 to {MOST_SEQS:,}")
    try:
        saved = {one.sequence_id: one for one in snapshot.sequences}
        pairs = zip(snapshot.requests, state.requests, strict=True)
        requests = [_request(tokens.request(asked), own, asked.sequence_id, saved, tokens) for asked, own in pairs]
        _fill_cache(snapshot, tokens, cache, [one for request in requests for one in request.sequences])
        restore(scheduler, snapshot.step, state, requests, most_tokens)
        check(cache, scheduler.sequences)
    except (AssertionError, LookupError, TypeError, ValueError, OverflowError, OctavoError) as error:
        raise LogError(f"the log's snapshot at step {snapshot.step:,} is of no engine: {error}") from error


def unlike_state(snapshot: Snapshot, scheduler: Scheduler, cache: KVCache) -> str | None:
    """How the whole state of a replayed engine differs from the recorded one's; None: it is the same."""
    ours = take_snapshot(0.0, scheduler, cache)
    for name in ("step", "num_waiting", "sequences", "cached", "tree_blocks", "free", "scheduler"):
        made, told = getattr(ours, name), getattr(snapshot, name)
        if made != told:
            return f"at step {snapshot.step}, {name}: {_first_unlike(told, made)}"
    return None


def _first_unlike(told: Any, made: Any) -> str:
    if isinstance(told, tuple) and isinstance(made, tuple):
        pairs = zip_longest(told, made)
        told, made = next((one, other) for one, other in pairs if one != other)
    if isinstance(told, Struct) and type(made) is type(told):
        name = next(name for name in told.__struct_fields__ if getattr(told, name) != getattr(made, name))
        return f"{name}: {_first_unlike(getattr(told, name), getattr(made, name))}"
    return f"the log has {cut(str(told), 300)}, and the replay has {cut(str(made), 300)}"


def _request(
    request: Request, state: RequestState, first_id: int, saved: dict[int, SavedSequence], tokens: ReplayedTokens
) -> Request:
    request.num_cached_tokens = state.num_cached_tokens
    request.num_preemptions = state.num_preemptions
    request.first_scheduled_time = 0.0 if state.has_started else None
    for index in range(state.num_made):
        one = saved.get(first_id + index)
        made = ended_sequence(request, first_id + index, index) if one is None else _sequence(request, one, tokens)
        request.sequences.append(made)
    return request


def _sequence(request: Request, saved: SavedSequence, tokens: ReplayedTokens) -> Sequence:
    return Sequence(
        sequence_id=SequenceId(saved.sequence_id),
        request=request,
        index=len(request.sequences),
        token_ids=tokens.first_tokens(saved.sequence_id, saved.num_tokens),
        num_computed_tokens=saved.num_computed,
        num_pending=saved.num_pending,
        expected_len=saved.expected_len,
        state=SequenceState.RUNNING if saved.row >= 0 else SequenceState.WAITING,
        row=saved.row,
    )


def _fill_cache(snapshot: Snapshot, tokens: ReplayedTokens, cache: KVCache, sequences: list[Sequence]) -> None:
    names = _Names(tokens)
    for block_id, (group, depth, content, parent) in zip(snapshot.tree_blocks, snapshot.tree_nodes, strict=True):
        before = names.root if depth == 0 else names.of(parent, depth - 1)
        cache.tree.insert(BlockId(block_id), Node(group, depth, names.of(content, depth), before))
    pool, by_id = cache.pool, {one.sequence_id: one for one in sequences}
    for saved in snapshot.sequences:
        if saved.num_hashes < 0:
            continue
        one = by_id[SequenceId(saved.sequence_id)]
        tables = BlockTables(
            hashes=[Root.of(one.request).hash()],
            block_ids=[[BlockId(block_id) for block_id in table] for table in saved.tables],
            first_visible=[*saved.first_visible],
            num_found=saved.num_found,
            num_published=saved.num_published,
            room=saved.room,
        )
        tables.extend_hashes(one.token_ids, min(saved.num_hashes, len(one.token_ids)), cache.block_size)
        cache.tables[one.sequence_id] = tables
        for block_id in (block_id for table in tables.block_ids for block_id in table if block_id != NULL_BLOCK):
            pool.ref_counts[block_id] += 1
    pool.free = [BlockId(block_id) for block_id in snapshot.free]
    pool.cached = OrderedDict.fromkeys(map(BlockId, snapshot.cached))


class _Names:
    """What blocks are called in the replay's prefix tree. root: what stands before a sequence's first block."""

    def __init__(self, tokens: ReplayedTokens) -> None:
        self._tokens = tokens
        self._known: dict[bytes, ContentHash] = {}
        self.root = Root(None, None).hash()

    def of(self, content: bytes, depth: int) -> ContentHash:
        """depth: the block's place in its sequence."""
        path = [content]
        while path[-1] not in self._known and len(path) <= depth:
            path.append(self._tokens.before(path[-1]))
        name = self._known.get(path.pop()) if path[-1] in self._known else None
        name = self.root if name is None else name
        for one in reversed(path):
            name = self._known[one] = chain_hash(name, self._tokens.of_block(one))
        return name
