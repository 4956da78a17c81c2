"""Times gathers and scatters of KV blocks, for `octavo kernels bench`: on a GPU the kernels, on a host its mover."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from octavo.kernels.block_mover import HostMover
from octavo.testing.op_bench import Row
from octavo.testing.op_cases import Case

#: bytes of a block, and how many move; small blocks are those of a small model
_SHAPES = {"triton": ((64 << 10, 256), (2 << 20, 16), (2 << 20, 256)), "cpu": ((64 << 10, 64), (2 << 20, 64))}


def measure_moves(move: str, backend: str, moved: float) -> Iterator[Row]:
    """move: gather_blocks or scatter_blocks. moved: the limit, in bytes/s read and written."""
    for size, count in _SHAPES[backend]:
        timed = _gpu_seconds if backend == "triton" else _host_seconds
        seconds = timed(move, size, count)
        case = Case(f"{count} blocks of {size >> 10:,} KiB", (1, 0, 1), (), lambda *_: None, 2 * size * count)
        yield Row(case, seconds, case.num_bytes / moved / seconds, is_product=False)


def _gpu_seconds(move: str, size: int, count: int) -> float:
    from octavo.kernels.cuda.timing import move_time_us

    return move_time_us(move, size, count) / 1e6


def _host_seconds(move: str, size: int, count: int) -> float:
    rng = np.random.default_rng(1)
    mover = HostMover("cpu", np.zeros((2 * count, size), np.uint8))
    packed, ids = np.zeros((count, size), np.uint8), rng.permutation(2 * count)[:count].tolist()
    run = mover.read if move == "gather_blocks" else mover.write
    best = float("inf")
    for _ in range(6):
        begin = time.perf_counter()
        run(None, ids, packed)
        best = min(best, time.perf_counter() - begin)
    return best
