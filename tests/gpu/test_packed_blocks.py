"""Blocks gathered from a pool into one buffer, and scattered from it, in one launch; and the mover made of them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, needs_gpu
from tests.gpu.test_block_copies import SIZES, random_blocks

from octavo.kernels.cuda.block_mover import DeviceMover  # isort: skip
from octavo.kernels.triton.packed_blocks import gather_blocks, scatter_blocks  # isort: skip


@pytest.mark.parametrize("size", SIZES)
def test_a_gather_packs_and_a_scatter_unpacks(size: int) -> None:
    num = 600 if ON_GPU else 9
    blocks, pool = random_blocks(num, size, seed=size), random_blocks(num, size, seed=size + 1)
    order = torch.randperm(num, generator=torch.Generator().manual_seed(size))[: num // 2]
    ids = order.to(DEVICE, torch.int32)
    packed = torch.zeros((len(ids), size), dtype=torch.uint8, device=DEVICE)
    gather_blocks(blocks, ids, packed)
    assert torch.equal(packed.cpu(), blocks.cpu()[order])
    expected = pool.cpu().clone()
    expected[order] = packed.cpu()
    scatter_blocks(packed, ids, pool)
    assert torch.equal(pool.cpu(), expected), "other blocks are left alone"


def test_nothing_is_moved_by_no_ids() -> None:
    blocks = random_blocks(3, 16, seed=0)
    none = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    gather_blocks(blocks, none, torch.zeros((0, 16), dtype=torch.uint8, device=DEVICE))


def test_a_buffer_of_another_size_is_refused() -> None:
    ids = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    with pytest.raises(AssertionError, match="2 blocks of 32 bytes in a buffer of"):
        gather_blocks(random_blocks(3, 32, seed=0), ids, torch.zeros((2, 16), dtype=torch.uint8, device=DEVICE))


def test_a_mover_moves_more_blocks_than_its_buffer_holds() -> None:
    blocks, pool = random_blocks(12, 48, seed=1), random_blocks(12, 48, seed=2)
    there, here = DeviceMover("triton", blocks, buffer_size=100), DeviceMover("triton", pool, buffer_size=100)
    memory, ids = np.zeros((5, 48), np.uint8), [7, 3, 11, 1, 5]
    undo = there.pin(memory)
    there.read(there.fence(), ids, memory)
    expected = pool.cpu().clone()
    expected[[2, 4, 6, 8, 10]] = blocks.cpu()[ids]
    here.write(here.fence(), [2, 4, 6, 8, 10], memory)
    undo()
    assert torch.equal(pool.cpu(), expected)


@needs_gpu
def test_a_fence_waits_for_the_steps_before_it_on_another_thread() -> None:
    blocks = torch.zeros((64, 1 << 20), dtype=torch.uint8, device=DEVICE)
    mover, memory = DeviceMover("triton", blocks), np.zeros((64, 1 << 20), np.uint8)
    torch.cuda._sleep(200_000_000)
    blocks.fill_(7)
    fence = mover.fence()
    thread = threading.Thread(target=mover.read, args=(fence, list(range(64)), memory))
    thread.start()
    thread.join()
    assert (memory == 7).all()


@needs_gpu
def test_another_process_copies_blocks_from_the_pool() -> None:
    """On another GPU where there is one, and after the steps before the fence. Blocks that follow each other go at
    once."""
    blocks = random_blocks(40, 1 << 16, seed=3)
    mover, (ours, theirs) = DeviceMover("triton", blocks), multiprocessing.Pipe()
    exported = mover.exported()
    assert exported == mover.exported() != b""
    spoiled = exported[:-1] + bytes([exported[-1] ^ 1])
    process = multiprocessing.get_context("spawn").Process(target=_read_pool, args=(theirs, exported, spoiled))
    process.start()
    assert ours.poll(60)
    num_blocks, why_spoiled, pool = ours.recv()
    process.join()
    assert num_blocks >= 40, "the rest of its allocation may count"
    assert "not what is read here" in why_spoiled
    assert (pool[[2, 3, 4, 9, 1]] == blocks.cpu().numpy()[[5, 6, 7, 0, 39]]).all()
    assert (pool[[0, 5, 6, 7, 8]] == 0).all(), "other blocks are left alone"
    with pytest.raises(RuntimeError, match=r"has \d+ bytes, and not 3"):
        mover.open(b"abc")


def _read_pool(pipe: Connection, exported: bytes, spoiled: bytes) -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    blocks = torch.zeros((10, 1 << 16), dtype=torch.uint8, device=device)
    mover, why = DeviceMover("triton", blocks), ""
    try:
        mover.open(spoiled)
    except RuntimeError as error:
        why = str(error)
    done: list[Any] = []

    def copy() -> None:  # as a connection does, on a thread that has not used the GPU
        pool = mover.open(exported)
        torch.cuda._sleep(1000)
        pool.copy(mover.fence(), [5, 6, 7, 0, 39], [2, 3, 4, 9, 1])
        done.append(pool.num_blocks)
        pool.close()

    thread = threading.Thread(target=copy)
    thread.start()
    thread.join()
    pipe.send((done[0], why, blocks.cpu().numpy()))
    pipe.close()
    os._exit(0)
