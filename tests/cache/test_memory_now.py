"""What is told of memory now: all tables and cached blocks of a running engine, within bounds."""

from __future__ import annotations

import msgspec
import pytest

from octavo.cache import memory_now as module
from octavo.cache.memory_now import MemoryNow, memory_now
from octavo.config import SchedulerConfig
from tests.simulate import Simulator, make_request


@pytest.fixture
def simulator() -> Simulator:
    """Three samples that share a prompt of two full blocks, and what an ended request has left behind."""
    simulator = Simulator(num_blocks=41, config=SchedulerConfig(max_num_seqs=4))
    simulator.add(make_request("first", list(range(500, 530)), max_tokens=5))
    simulator.run()
    simulator.add(make_request("a", list(range(40)), n=3, max_tokens=20))
    for _ in range(4):
        simulator.step()
    return simulator


def test_it_has_what_the_engine_has(simulator: Simulator) -> None:
    now = memory_now(simulator.cache, simulator.scheduler.sequences)
    assert (now.num_blocks, now.block_size, now.num_left_out) == (40, 16, 0)
    assert len(now.sequences) == 3
    for told, sequence in zip(now.sequences, simulator.scheduler.sequences, strict=True):
        assert told.num_tokens == sequence.num_computed_tokens
        assert told.tables == simulator.cache.tables[sequence.sequence_id].block_ids
    assert {tuple(told.tables[0][:2]) for told in now.sequences} == {tuple(now.sequences[0].tables[0][:2])}
    assert now.cached == list(simulator.cache.pool.cached) != []
    assert msgspec.json.decode(msgspec.json.encode(now), type=MemoryNow) == now


def test_its_size_is_bounded(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BLOCKS", 5)
    now = memory_now(simulator.cache, simulator.scheduler.sequences)
    assert (len(now.sequences), now.num_left_out) == (1, 2)
