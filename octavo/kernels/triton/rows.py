"""Permanent rows on the device: gathers a decode step's batch from them, and writes the drawn tokens back.

    records [rows, ENTRY_WIDTH] int32     last token | length | seed (2) | ... | temperature | ...
        |  gather: by the step's rows; -1 is padding
        v
    input_ids, positions, seq_lens; the draw's entries
        ... forward, draw ...
        |  advance: append the drawn token
        v
    records

A record is a row's entry of a draw (`sampling/columns.py`), with the last token in place of the logits row; its
position field is the sequence's length. So a step of decodes reads nothing from the host.

A row's last few tokens are kept by their positions, too: the host copies them while later steps run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import KEPT_TOKENS
from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.triton.chain import wait_for_previous
from octavo.sampling.columns import ENTRY_WIDTH, WORDS

TOKEN, LENGTH = WORDS["logits_rows"], WORDS["positions"]


def gather_rows(
    rows: torch.Tensor, records: torch.Tensor, step: DeviceStep, entries: torch.Tensor, *, chained: bool
) -> None:
    """Fill `step` and `entries` for the sequences in `rows` [S]. A row of -1 is padding: a sequence of length 0."""
    _gather_kernel[(len(rows),)](
        rows, records, step.input_ids, step.positions, step.seq_lens, step.rows, entries,
        WIDTH=ENTRY_WIDTH, TOKEN=TOKEN, LENGTH=LENGTH, CHAINED=chained, launch_pdl=chained, num_warps=1,
    )  # fmt: skip


def advance_rows(
    rows: torch.Tensor, tokens: torch.Tensor, records: torch.Tensor, kept: torch.Tensor | None = None, *, chained: bool
) -> None:
    """Append tokens [S] to the sequences in `rows`. Padding, and a failed draw (-1), change nothing. kept [rows,
    KEPT_TOKENS]: gets the token of row r at position p as kept[r, p % KEPT_TOKENS], a failed draw as -1."""
    _advance_kernel[(len(rows),)](
        rows, tokens, records, records if kept is None else kept, WIDTH=ENTRY_WIDTH, TOKEN=TOKEN, LENGTH=LENGTH,
        KEPT=0 if kept is None else KEPT_TOKENS, CHAINED=chained, launch_pdl=chained, num_warps=1,
    )  # fmt: skip


@triton.jit
def _gather_kernel(
    rows, records, input_ids, positions, seq_lens, table_rows, entries,
    WIDTH: tl.constexpr, TOKEN: tl.constexpr, LENGTH: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    wait_for_previous(CHAINED)
    row = tl.load(rows + i)
    is_live = row >= 0
    row = tl.maximum(row, 0)
    record = records + row * WIDTH
    length = tl.where(is_live, tl.load(record + LENGTH), 0)
    tl.store(input_ids + i, tl.where(is_live, tl.load(record + TOKEN), 0))
    tl.store(positions + i, tl.maximum(length - 1, 0))
    tl.store(seq_lens + i, length)
    tl.store(table_rows + i, row)
    word = tl.arange(0, WIDTH)
    entry = tl.where(word == TOKEN, i, tl.load(record + word))
    tl.store(entries + i * WIDTH + word, tl.where(word == LENGTH, length, entry))


@triton.jit
def _advance_kernel(
    rows, tokens, records, kept,
    WIDTH: tl.constexpr, TOKEN: tl.constexpr, LENGTH: tl.constexpr, KEPT: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    wait_for_previous(CHAINED)
    row = tl.load(rows + i)
    token = tl.load(tokens + i)
    if row >= 0:
        record = records + row * WIDTH
        length = tl.load(record + LENGTH)
        if KEPT > 0:
            tl.store(kept + row * KEPT + length % KEPT, token)
        if token >= 0:
            tl.store(record + TOKEN, token)
            tl.store(record + LENGTH, length + 1)
