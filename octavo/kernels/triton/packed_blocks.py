"""Gathers whole blocks of the KV pool into one buffer, and scatters a buffer's into the pool: one launch either way.

    pool      │ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │ ...      ids 4 1 2
    packed    │ 4 │ 1 │ 2 │                      gather: packed[i] = pool[ids[i]], scatter: the other way

A block is one run of bytes with all layers of its cache group, so all layers move at once. The buffer then leaves in
one copy, for another engine's pool.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_TILE = 2048  # words of 4 bytes that a program moves: 4 times 16 bytes a thread


def gather_blocks(blocks: torch.Tensor, ids: torch.Tensor, packed: torch.Tensor) -> None:
    """packed[i] = blocks[ids[i]]. blocks: [N, bytes] uint8; a block's bytes are a multiple of 16. ids: int32 on the
    device. packed: [len(ids), bytes] uint8 there."""
    _launch(blocks, ids, packed, packs=True)


def scatter_blocks(packed: torch.Tensor, ids: torch.Tensor, blocks: torch.Tensor) -> None:
    """blocks[ids[i]] = packed[i]. No id is there twice."""
    _launch(blocks, ids, packed, packs=False)


def _launch(blocks: torch.Tensor, ids: torch.Tensor, packed: torch.Tensor, *, packs: bool) -> None:
    size = blocks.shape[1]
    assert size % 16 == 0, f"blocks are moved 16 bytes at a time; one has {size}"
    assert packed.shape == (len(ids), size), f"{len(ids)} blocks of {size} bytes in a buffer of {tuple(packed.shape)}"
    if not len(ids):
        return
    _move_kernel[(len(ids), triton.cdiv(size // 4, _TILE))](
        blocks.view(torch.int32), packed.view(torch.int32), ids, size // 16, TILE=_TILE, PACKS=packs, num_warps=4
    )


@triton.jit
def _move_kernel(words, packed, ids, num_chunks, TILE: tl.constexpr, PACKS: tl.constexpr):
    place = tl.program_id(0)
    word = tl.program_id(1) * TILE + tl.arange(0, TILE)
    block_words = num_chunks * 4  # a multiple of 4, so that the compiler reads 16 bytes at once
    in_pool = words + tl.load(ids + place).to(tl.int64) * block_words + word
    in_buffer = packed + place.to(tl.int64) * block_words + word
    is_there = word < block_words
    if PACKS:
        tl.store(in_buffer, tl.load(in_pool, mask=is_there), mask=is_there)
    else:
        tl.store(in_pool, tl.load(in_buffer, mask=is_there), mask=is_there)
