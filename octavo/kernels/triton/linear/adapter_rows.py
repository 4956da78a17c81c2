"""The rows of a step by the slot of their adapter: lists of them in tiles, which the products of `adapters.py` read.

    slots of the rows   2  0  0 -1  2         order, by slot    0: rows 1 2     2: rows 0 4     none: row 3
                                              tiles             (0, from 0)     (2, from 0)     (none, from 0)

How many tiles there may be depends on the number of rows alone, so a CUDA graph can hold launches with a program for
each tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import most_tiles
from octavo.kernels.triton.chain import wait_for_previous

_SCAN = 1024  # rows that a program looks at in a turn as it makes a list


@dataclass(frozen=True, slots=True, eq=False)
class RowLists:
    """The rows of each slot, and behind them those without an adapter. slots [max_rows], counts [S + 2], the last of
    which is the number of tiles, order [S + 1, max_rows], tiles [2, max_tiles]: slots, and places in its list; all
    int32."""

    slots: torch.Tensor
    counts: torch.Tensor
    order: torch.Tensor
    tiles: torch.Tensor

    @property
    def num_slots(self) -> int:
        return len(self.order) - 1

    def num_tiles(self, num_rows: int, tile: int) -> int:
        return most_tiles(num_rows, tile, self.num_slots)

    def make(self, num_rows: int, tile: int, *, chained: bool) -> None:
        """From the slots of the first rows. tile: rows of a tile."""
        num_lists = len(self.order)
        _lists_kernel[(num_lists,)](
            self.slots, self.counts, self.order, num_rows, self.order.shape[1], num_lists - 1,
            SCAN=_SCAN, CHAINED=chained, launch_pdl=chained, num_warps=4,
        )  # fmt: skip
        _tiles_kernel[(1,)](
            self.counts, self.tiles, self.tiles.shape[1],
            LISTS=num_lists, PAD=triton.next_power_of_2(num_lists), TILE=tile, CHAINED=chained, launch_pdl=chained,
            num_warps=1,
        )  # fmt: skip


def gather_slots(
    rows: torch.Tensor, seq_lens: torch.Tensor, of_rows: torch.Tensor, slots: torch.Tensor, *, chained: bool
) -> None:
    """slots[i] = of_rows[rows[i]], or -1 for padding: a sequence of length 0."""
    _gather_kernel[(len(rows),)](rows, seq_lens, of_rows, slots, CHAINED=chained, launch_pdl=chained, num_warps=1)


@triton.jit
def _gather_kernel(rows, seq_lens, of_rows, slots, CHAINED: tl.constexpr):
    i = tl.program_id(0)
    wait_for_previous(CHAINED)
    slot = tl.load(of_rows + tl.load(rows + i))
    tl.store(slots + i, tl.where(tl.load(seq_lens + i) > 0, slot, -1))


@triton.jit(do_not_specialize=["num_rows", "max_rows", "num_slots"])
def _lists_kernel(slots, counts, order, num_rows, max_rows, num_slots, SCAN: tl.constexpr, CHAINED: tl.constexpr):
    place = tl.program_id(0)
    wait_for_previous(CHAINED)
    wanted = tl.where(place < num_slots, place, -1)
    at = order + place.to(tl.int64) * max_rows
    found = 0
    for start in range(0, num_rows, SCAN):
        row = start + tl.arange(0, SCAN)
        is_own = (row < num_rows) & (tl.load(slots + row, mask=row < num_rows, other=-1) == wanted)
        to = found + tl.cumsum(is_own.to(tl.int32), 0) - 1
        tl.store(at + to, row, mask=is_own)
        found += tl.sum(is_own.to(tl.int32), 0)
    tl.store(counts + place, found)


@triton.jit(do_not_specialize=["max_tiles"])
def _tiles_kernel(
    counts, tiles, max_tiles, LISTS: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr, CHAINED: tl.constexpr
):
    wait_for_previous(CHAINED)
    slot = tl.arange(0, PAD)
    wanted = tl.cdiv(tl.load(counts + slot, mask=slot < LISTS, other=0), TILE)
    first = tl.cumsum(wanted, 0) - wanted
    for place in range(0, tl.max(wanted, 0)):
        is_there = place < wanted
        tl.store(tiles + first + place, slot, mask=is_there)
        tl.store(tiles + max_tiles + first + place, tl.zeros_like(slot) + place * TILE, mask=is_there)
    tl.store(counts + LISTS, tl.sum(wanted, 0))
