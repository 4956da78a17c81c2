"""Blocks gathered from a pool into one buffer, and scattered from it, in one launch; and the mover made of them."""

from __future__ import annotations

import threading

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
