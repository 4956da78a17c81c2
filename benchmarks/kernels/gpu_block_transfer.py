"""KV blocks of a prompt on their way from one GPU to another: read from the other's pool, or through the host's memory.

    python -m benchmarks.kernels.gpu_block_transfer [MiB of a prompt ...]

The link is what one copy of a GiB between the two GPUs reaches. Blocks are those of an 8B model, 2 MiB.

    direct      what engines behind one supervisor do, with blocks at random places of both pools
    in a row    the same with blocks that follow each other
    host        what servers do but for their network: gathered and copied to pinned memory, from there and scattered
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import torch

from octavo.kernels.cuda.block_mover import DeviceMover
from octavo.kernels.cuda.timing import print_machine

BLOCK_BYTES = 2 << 20
NUM_BLOCKS = 2048
REPEATS = 9


def _lend(pipe: Connection) -> None:
    """The exporter's process: a pool, until the other one has finished."""
    torch.cuda.set_device(torch.cuda.device_count() - 1)
    mover = DeviceMover("triton", torch.zeros((NUM_BLOCKS, BLOCK_BYTES), dtype=torch.uint8, device="cuda"))
    pipe.send(mover.exported())
    pipe.recv()


def _milliseconds(run: Callable[[], None]) -> float:
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:]) * 1e3


def _link_gb_s() -> float:
    here, there = (
        torch.zeros(1 << 30, dtype=torch.uint8, device=f"cuda:{i}") for i in (0, -1 % torch.cuda.device_count())
    )

    def copy() -> None:
        here.copy_(there)
        torch.cuda.synchronize()

    return here.nbytes / _milliseconds(copy) / 1e6


def _through_host(mover: DeviceMover, ids: list[int], memory: np.ndarray) -> None:
    mover.read(mover.fence(), ids, memory)
    mover.write(mover.fence(), ids, memory)


def _tell(way: str, size: int, link: float, milliseconds: float) -> None:
    speed = (size << 20) / milliseconds / 1e6
    print(f"{way:>8} {size:5} MiB: {milliseconds:7.3f} ms, {speed:5.0f} GB/s, {speed / link:.0%} of the link")


def main() -> None:
    sizes = [int(text) for text in sys.argv[1:]] or [2, 16, 64, 256, 1024]
    print_machine()
    link = _link_gb_s()
    print(f"link between GPU 0 and GPU {torch.cuda.device_count() - 1}: {link:,.0f} GB/s")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    lender = context.Process(target=_lend, args=(theirs,))
    lender.start()
    blocks = torch.zeros((NUM_BLOCKS, BLOCK_BYTES), dtype=torch.uint8, device="cuda")
    mover, exported, order = DeviceMover("triton", blocks), ours.recv(), np.random.default_rng(0)
    prompts = [[order.permutation(NUM_BLOCKS)[: size // 2].tolist() for _ in range(2)] for size in sizes]
    memory = np.zeros((max(sizes) // 2, BLOCK_BYTES), np.uint8)
    mover.pin(memory)
    for size, (here, _) in zip(sizes, prompts, strict=True):
        _tell("host", size, link, _milliseconds(partial(_through_host, mover, here, memory[: len(here)])))
    pool = mover.open(exported)
    for size, (here, there) in zip(sizes, prompts, strict=True):
        _tell("direct", size, link, _milliseconds(lambda there=there, here=here: pool.copy(mover.fence(), there, here)))
        in_a_row = list(range(size // 2))
        _tell("in a row", size, link, _milliseconds(lambda ids=in_a_row: pool.copy(mover.fence(), ids, ids)))
    pool.close()
    ours.send("done")
    lender.join()


if __name__ == "__main__":
    main()
