"""Frames replayed from events are, at every step, what the engine's own bookkeeping says."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from octavo.cache.kv_cache import KVCache
from octavo.cache.sharing import sharing_of
from octavo.engine.snapshot import take_snapshot
from octavo.observe.block_use import occupancy
from octavo.observe.event_log import EventLog
from octavo.observe.events import (
    BlockCopied,
    BlockEvicted,
    BlocksForgotten,
    BlocksFreed,
    Forked,
    Preempted,
    PrefixHit,
    Scheduled,
    Unforked,
)
from octavo.observe.flight_log import read_open_log
from octavo.observe.frames import Frame, frames
from octavo.observe.recorder import FlightRecorder
from octavo.observe.snapshot import Snapshot
from octavo.request import SequenceState
from tests.viz.runs import RandomRun

NUM_STEPS = 120


def check_memory(frame: Frame, cache: KVCache) -> None:
    pool = cache.pool
    assert frame.ref_counts == pool.ref_counts
    held = {sequence_id: tables.block_ids for sequence_id, tables in cache.tables.items() if tables.num_blocks}
    assert {sequence_id: tables for sequence_id, tables in frame.tables.items() if any(tables)} == held
    idle = {block_id for block_id in range(1, pool.num_blocks) if not frame.ref_counts[block_id]}
    assert {block_id for block_id in idle if block_id in frame.nodes} == set(pool.cached)
    assert {block_id for block_id in idle if block_id not in frame.nodes} == set(pool.free)
    assert frame.nodes.keys() == cache.tree.nodes.keys()
    for block_id, node in cache.tree.nodes.items():
        mine = frame.nodes[block_id]
        assert (mine.group, mine.depth, mine.content) == (node.group, node.depth, node.content)
        is_sure = cache.groups[node.group].window is None or mine.parent
        assert mine.parent == (node.parent if node.depth and is_sure else b"")


@pytest.mark.parametrize("seed", range(8))
def test_frames_are_what_the_engine_says(seed: int) -> None:
    run = RandomRun(seed)
    frame = Frame(run.started)
    run.simulator.events.listen(frame.follow)
    scheduler = run.simulator.scheduler
    for _ in run.steps(NUM_STEPS):
        check_memory(frame, run.simulator.cache)
        sequences = {one.sequence_id: one for one in scheduler.sequences}
        assert frame.request_of == {name: one.request.request_id for name, one in sequences.items()}
        running = {name for name, one in sequences.items() if one.state is SequenceState.RUNNING}
        assert (frame.running, frame.waiting) == (running, sequences.keys() - running)
        assert len(frame.running) == scheduler.num_running
        for name in frame.batch if run.has_runs else frame.running:
            assert frame.num_computed[name] == sequences[name].num_computed_tokens
    check_memory(frame, run.simulator.cache)
    assert (frame.tables, frame.running, frame.waiting) == ({}, set(), set())


def test_the_runs_have_everything_that_moves_a_block() -> None:
    seen: set[object] = set()
    for seed in range(6):
        run = RandomRun(seed)
        num_steps = sum(1 for _ in run.steps(NUM_STEPS))
        steps = [frame.step for frame in frames(run.started, run.simulator.events)]
        assert steps == [*range(1, num_steps + 1), num_steps], "a frame for each step, and one for the end"
        seen |= {type(event) for event in run.simulator.events}
        seen |= {event.why for event in run.simulator.events if isinstance(event, BlocksFreed)}
    kinds = {BlockCopied, BlockEvicted, BlocksForgotten, Forked, Unforked, PrefixHit, Preempted}
    assert seen >= kinds | {"finished", "preempted", "aborted", "window", "dropped"}


@pytest.mark.parametrize("seed", range(4))
def test_a_log_that_lost_its_beginning_goes_on_from_a_snapshot(seed: int) -> None:
    run, frame, is_known = RandomRun(seed), None, False
    for number, _ in enumerate(run.steps(NUM_STEPS)):
        simulator = run.simulator
        if number == 40:
            frame = Frame(run.started)
            frame.follow(take_snapshot(0.0, simulator.scheduler, simulator.cache))
            simulator.events.listen(frame.follow)
        if frame is not None:
            check_memory(frame, simulator.cache)
            sequences = {one.sequence_id: one for one in simulator.scheduler.sequences}
            assert frame.request_of == {name: one.request.request_id for name, one in sequences.items()}
            running = {name for name, one in sequences.items() if one.state is SequenceState.RUNNING}
            assert (frame.running, frame.waiting) == (running, sequences.keys() - running)
            is_known = True
    assert is_known


@pytest.mark.parametrize("seed", range(4))
def test_frames_of_a_dumped_ring_are_those_of_the_whole_log(seed: int, tmp_path: Path) -> None:
    """From its snapshot on, at every step that both have; the ring is dumped again and again, at any moment."""
    run, ring = RandomRun(seed), EventLog(300)
    whole, expected, dumps = Frame(run.started), dict[int, object](), list[bytes]()
    run.simulator.events.listen(whole.follow)
    run.simulator.events.listen(lambda event: ring.write(event))  # which changes with each half
    for number, _ in enumerate(run.steps(NUM_STEPS)):
        if number == 0:
            ring.started = run.started
            recorder = FlightRecorder(ring, {}, lambda: 0.0, lambda: tmp_path)
        expected[whole.step] = told(whole)
        if number % 20 == 19:
            dumps.append(recorder.dump())
        if len(ring.newer) >= ring.half:
            ring.begin_half(take_snapshot(0.0, run.simulator.scheduler, run.simulator.cache))
    num_alike = 0
    for dump in dumps:
        header, log = read_open_log(io.BytesIO(dump), "the ring")
        frame, is_known = Frame(header.started), header.is_whole
        for event in log:
            frame.follow(event)
            is_known |= type(event) is Snapshot
            if type(event) is Scheduled and is_known:
                assert told(frame) == expected[event.step]
                num_alike += 1
    assert not header.is_whole
    assert num_alike > 10 * len(dumps)


def told(frame: Frame) -> object:
    """All that a frame says. A file has hashes of its own, so contents are numbered in the order of their blocks."""
    numbers: dict[bytes, int] = {}
    nodes = [
        (block_id, node.group, node.depth, numbers.setdefault(node.content, len(numbers)))
        for block_id, node in sorted(frame.nodes.items())
    ]
    grants = {name: (grant.start, grant.num_tokens) for name, grant in frame.batch.items()}
    held = {name: [list(table) for table in tables] for name, tables in frame.tables.items() if any(tables)}
    who = dict(frame.request_of), set(frame.running), set(frame.waiting)
    computed = {name: number for name, number in frame.num_computed.items() if number}  # none of those that wait again
    return frame.step, *who, held, grants, list(frame.ref_counts), nodes, computed


@pytest.mark.parametrize("seed", range(4))
def test_what_sequences_share_is_what_the_cache_says(seed: int) -> None:
    run = RandomRun(seed)
    frame = Frame(run.started)
    run.simulator.events.listen(frame.follow)
    for _ in run.steps(60):
        filled = {}
        for block_id, owners in frame.owners().items():
            filled[block_id] = max(frame.filled(sequence_id, place) for sequence_id, _, place in owners)
        now, shared = occupancy(frame), sharing_of(run.simulator.cache, run.simulator.scheduler.sequences)
        assert (now.num_used_blocks, now.num_table_entries) == (shared.num_blocks, shared.num_unshared_blocks)
        assert (len(filled), sum(filled.values())) == (now.num_used_blocks, now.num_filled_slots)
