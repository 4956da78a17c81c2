"""The driver's batches: what every backend is tested with must itself be right."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.device import StepBatch, StepLimits
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.kernels.model import Model
from tests.models.architectures import ARCHITECTURES, SLOTS
from tests.models.drive import Driver, DriverSetting, greedy
from tests.models.symbolic import BlankTensors

WINDOW, BLOCK_SIZE, MAX_SEQS = 8, 4, 3


@dataclass
class Recorder:
    """A device that keeps the batches, with copies of their tables; the best token is always (last id + 1)."""

    name: str = "recorder"
    batches: list[StepBatch] = field(default_factory=list)
    tables: list[list[IntArray]] = field(default_factory=list)
    layout: KVLayout | None = None
    pool: NDArray[np.uint8] | None = None

    def why_not(self) -> str | None:
        return None

    def load(self, model: Model, kv: KVLayout, limits: StepLimits, dtype: KVDType) -> Recorder:
        self.layout = kv
        return self

    def bind(self, num_blocks: int) -> Recorder:
        assert self.layout is not None
        self.pool = np.zeros(num_blocks * self.layout.block_bytes, np.uint8)
        return self

    def forward(self, batch: StepBatch) -> None:
        self.batches.append(batch)
        self.tables.append([table.copy() for table in batch.block_tables])

    def logits(self, token_indices: IntArray) -> FloatArray:
        assert len(token_indices) <= MAX_SEQS
        return np.eye(170, dtype=np.float32)[self.batches[-1].input_ids[token_indices] + 1]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def driver(recorder: Recorder) -> Driver:
    """Layers 0 and 2 slide and are group 0; layer 1 sees everything and is group 1."""
    setting = DriverSetting(block_size=BLOCK_SIZE, max_model_len=64, max_num_seqs=MAX_SEQS, slots=SLOTS)
    return Driver(recorder, ARCHITECTURES["gemma3"], BlankTensors(), setting)


def test_ragged_batch_is_laid_out_by_the_contract(driver: Driver, recorder: Recorder) -> None:
    driver.step({2: [5, 6, 7], 0: [8]})
    driver.step({0: [9, 10], 2: [11]})
    batch = recorder.batches[1]
    assert batch.input_ids.tolist() == [9, 10, 11]
    assert batch.positions.tolist() == [1, 2, 3]
    assert batch.query_start_loc.tolist() == [0, 2, 3]
    assert batch.seq_lens.tolist() == [3, 4]
    assert batch.rows.tolist() == [0, 2]
    arrays = (batch.input_ids, batch.positions, batch.query_start_loc, batch.seq_lens, batch.rows, *batch.block_tables)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}


def test_visible_blocks_are_owned_once_and_hidden_ones_are_null(driver: Driver, recorder: Recorder) -> None:
    greedy(driver, [[1], list(range(20)), list(range(9))], 12, max_chunk=5)
    for batch, tables in zip(recorder.batches, recorder.tables, strict=True):
        live = np.concatenate([table[table != 0] for table in tables])
        assert len(live) == len(set(live.tolist()))
        for i, row in enumerate(batch.rows):
            first_position = batch.positions[batch.query_start_loc[i]]
            num_blocks = -(-int(batch.seq_lens[i]) // BLOCK_SIZE)
            first_visible = max(0, int(first_position) - WINDOW + 1) // BLOCK_SIZE
            sliding, full = (table[row, :num_blocks] != 0 for table in tables)
            assert full.all()
            assert sliding.tolist() == [place >= first_visible for place in range(num_blocks)]


def test_pool_is_poisoned_and_blocks_come_in_no_order(driver: Driver, recorder: Recorder) -> None:
    assert recorder.pool is not None
    assert np.isnan(recorder.pool.view(np.float32)).all()
    driver.step({0: list(range(40))})
    assert np.any(np.diff(recorder.tables[0][1][0, :10]) < 0)


def test_greedy_returns_continuations_and_all_logits_but_the_last_tokens(driver: Driver, recorder: Recorder) -> None:
    tokens, logits = greedy(driver, [[3, 4], [50]], 3)
    assert tokens == [[5, 6, 7], [51, 52, 53]]
    assert [len(x) for x in logits] == [4, 3]
    assert logits[0].argmax(axis=-1).tolist() == [4, 5, 6, 7]


def test_freed_rows_start_anew(driver: Driver, recorder: Recorder) -> None:
    for _ in range(20):  # more than the pool would hold without giving back
        greedy(driver, [list(range(40))] * MAX_SEQS, 2)
    assert recorder.batches[-2].positions[0] == 0
