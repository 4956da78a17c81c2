"""The rows of a step by the slot of their adapter: lists of them, which the products of `adapters.py` read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.chain import wait_for_previous

_SCAN = 1024  # rows that a program looks at in a turn as it makes a list


@dataclass(frozen=True, slots=True, eq=False)
class RowLists:
    """The rows of each slot. slots [max_rows], counts [S], order [S, max_rows], all int32."""

    slots: torch.Tensor
    counts: torch.Tensor
    order: torch.Tensor

    def make(self, num_rows: int, *, chained: bool) -> None:
        """From the slots of the first rows."""
        _lists_kernel[(len(self.counts),)](
            self.slots, self.counts, self.order, num_rows, self.order.shape[1],
            SCAN=_SCAN, CHAINED=chained, launch_pdl=chained, num_warps=4,
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


@triton.jit(do_not_specialize=["num_rows", "max_rows"])
def _lists_kernel(slots, counts, order, num_rows, max_rows, SCAN: tl.constexpr, CHAINED: tl.constexpr):
    slot = tl.program_id(0)
    wait_for_previous(CHAINED)
    at = order + slot.to(tl.int64) * max_rows
    found = 0
    for start in range(0, num_rows, SCAN):
        row = start + tl.arange(0, SCAN)
        is_own = tl.load(slots + row, mask=row < num_rows, other=-1) == slot
        place = found + tl.cumsum(is_own.to(tl.int32), 0) - 1
        tl.store(at + place, row, mask=is_own)
        found += tl.sum(is_own.to(tl.int32), 0)
    tl.store(counts + slot, found)
