"""A host's mover reads and writes whole blocks of its model's pool, after the steps before the fence."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from octavo.engine.options import engine_config
from octavo.kernels.block_mover import HostMover
from octavo.worker.task import WorkerTask
from octavo.worker.worker import Worker


def test_blocks_are_read_and_written_in_the_order_asked_for() -> None:
    pool = np.arange(6 * 32, dtype=np.uint8).reshape(6, 32)
    mover, memory = HostMover("cpu", pool), np.zeros((3, 32), np.uint8)
    mover.read(mover.fence(), [5, 1, 3], memory)
    assert (memory == pool[[5, 1, 3]]).all()
    mover.write(mover.fence(), [0, 2, 4], memory)
    assert (pool[[0, 2, 4]] == pool[[5, 1, 3]]).all()


def test_a_move_waits_for_the_steps_before_its_fence() -> None:
    pool, memory = np.zeros((2, 16), np.uint8), np.zeros((1, 16), np.uint8)
    may_end = threading.Event()
    with ThreadPoolExecutor(1) as steps, ThreadPoolExecutor(1) as mover_thread:

        def step() -> None:
            may_end.wait()
            pool[1] = 9

        steps.submit(step)
        mover = HostMover("cpu", pool).after(lambda: steps.submit(lambda: None))
        moved = mover_thread.submit(mover.read, mover.fence(), [1], memory)
        assert not moved.done()
        may_end.set()
        moved.result()
    assert (memory == 9).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_worker_gives_the_mover_of_its_pool(backend: str) -> None:
    config = engine_config(model="smollm2", backend=backend, num_gpu_blocks_override=8, max_model_len=64)
    worker = Worker(WorkerTask.of(config))
    try:
        mover = worker.mover()
        assert (mover.order, mover.block_bytes) == (backend, worker.shape.layout.block_bytes)
        data = np.random.default_rng(0).integers(0, 256, (2, mover.block_bytes), np.uint8)
        mover.write(mover.fence(), [3, 6], data)
        back = np.zeros_like(data)
        mover.read(mover.fence(), [6, 3], back)
        assert (back == data[::-1]).all()
    finally:
        worker.close()
