"""Matrices of a module's adapters on a GPU, and the blocks in which launches compute its outputs.

A module may be several products in one, such as those of queries, keys and values. Each of these parts has a B of its
own, so a block of outputs lies in one part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True, slots=True, eq=False)
class SlotMatrices:
    """A module's matrices in all slots. a [S, P * R, in], of a table [S, in, R]; b [S, out, R]; each slot's is in one
    piece. ranks [S] int32, 0 where the adapter leaves the module as it is. ends: where each part's outputs end."""

    a: torch.Tensor
    b: torch.Tensor
    ranks: torch.Tensor
    ends: tuple[int, ...]

    @property
    def max_rank(self) -> int:
        return int(self.b.shape[2])


def output_blocks(module: SlotMatrices, columns: int, gate: str) -> dict[str, int]:
    """How an expand's outputs are cut: `blocks`, and what `block_of` takes. With a gate a block is of both halves."""
    ends = module.ends
    assert len(ends) <= 3, "a product has up to three parts"
    if gate:
        half = ends[-1] // 2
        return {"blocks": triton.cdiv(half, columns), "PARTS": len(ends), "FIRST": half, "SECOND": half, "N": ends[-1]}
    first, second, *_ = (*ends, ends[-1], ends[-1])
    starts = (0, *ends[:-1])
    blocks = sum(triton.cdiv(end - start, columns) for start, end in zip(starts, ends, strict=True))
    return {"blocks": blocks, "PARTS": len(ends), "FIRST": first, "SECOND": second, "N": ends[-1]}


@triton.jit
def block_of(
    block, PARTS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, N: tl.constexpr, BN: tl.constexpr,
    GATE: tl.constexpr,
):  # fmt: skip
    """The part that a block of outputs is of, and where its outputs begin and end."""
    if GATE != "":
        part, begin, end = block * 0, block * BN, block * 0 + N // 2
    else:
        IN_FIRST: tl.constexpr = (FIRST + BN - 1) // BN
        IN_SECOND: tl.constexpr = (SECOND - FIRST + BN - 1) // BN
        is_behind, is_last = block >= IN_FIRST, (block >= IN_FIRST + IN_SECOND) & (PARTS > 2)
        part = is_behind.to(tl.int32) + is_last.to(tl.int32)
        begin = tl.where(is_behind, FIRST + (block - IN_FIRST) * BN, block * BN)
        begin = tl.where(is_last, SECOND + (block - IN_FIRST - IN_SECOND) * BN, begin)
        end = tl.where(is_last, N, tl.where(is_behind, SECOND, FIRST))
    return part, begin, end
