"""Copies whole blocks of the KV pool: all copies of a step in one launch.

A step copies blocks for sequences that share one and are about to write in it. Its list of copies means what it means
in order; a launch runs them at once. Nearly always that is the same. It is not where a step takes back a block that it
has just copied, because its last owner gave way, or copies a block again; so a list is cut before each copy that must
come after an earlier one:

    3 -> 8   3 -> 9   5 -> 6 | 7 -> 3   6 -> 4         3 is written after it is read, 6 is read after it is written

As in attention, the kernel waits for its predecessor before it touches the pool, and may be captured.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import triton
import triton.language as tl

from octavo.kernels.arrays import IntArray
from octavo.kernels.triton.chain import wait_for_previous

_TILE = 2048  # words of 4 bytes that a program copies: 4 times 16 bytes a thread


def copy_blocks(blocks: torch.Tensor, source: torch.Tensor, target: torch.Tensor, *, chained: bool = False) -> None:
    """blocks[target[i]] = blocks[source[i]] at once for all i. blocks: [N, bytes] uint8; a block's bytes are a multiple
    of 16. source, target: int32 on the device; no block is a target twice, or a source of another copy than its own."""
    assert blocks.shape[1] % 16 == 0, f"blocks are copied 16 bytes at a time; one has {blocks.shape[1]}"
    num_chunks = blocks.shape[1] // 16
    _copy_kernel[(len(source), triton.cdiv(4 * num_chunks, _TILE))](
        blocks.view(torch.int32), source, target, num_chunks,
        TILE=_TILE, CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


def in_order(source: IntArray, target: IntArray) -> list[IntArray]:
    """Copies that are meant in order, as arrays for one launch after another: source, target, source, target, ..."""
    if len(np.unique(target)) == len(target) and not np.isin(target, source).any():
        return [source, target]
    cuts, read, written = [0], set[int](), set[int]()
    for i, (one, other) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        if one in written or other in read or other in written:
            cuts.append(i)
            read, written = set(), set()
        read.add(one)
        written.add(other)
    cuts.append(len(source))
    return [ids[begin:end] for begin, end in pairwise(cuts) for ids in (source, target)]


@triton.jit
def _copy_kernel(words, source, target, num_chunks, TILE: tl.constexpr, CHAINED: tl.constexpr):
    copy = tl.program_id(0)
    word = tl.program_id(1) * TILE + tl.arange(0, TILE)
    block_words = num_chunks * 4  # a multiple of 4, so that the compiler reads 16 bytes at once
    wait_for_previous(CHAINED)
    begin = tl.load(source + copy).to(tl.int64) * block_words
    to = tl.load(target + copy).to(tl.int64) * block_words
    x = tl.load(words + begin + word, mask=word < block_words)
    tl.store(words + to + word, x, mask=word < block_words)
