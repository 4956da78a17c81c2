"""Permanent rows on the device: a decode step's batch gathered from them, and the drawn tokens put back.

    records [rows, 16] int32     last token | length | temperature | top_p | top_k | min_p | seed (2) | sample index
        |  gather: by the step's rows, -1 being padding            floats and seeds by their bits
        v
    input_ids, positions, seq_lens; the columns of the draw
        ... forward, draw ...
        |  advance: a token was drawn, the sequence is one longer
        v
    records

So a step of decodes reads nothing that the host would have to send.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.sampling.draw import DeviceSamplingBatch

RECORD_WIDTH = 16
#: a record's columns, in order; a seed takes two
RECORD = ("token", "length", "temperature", "top_p", "top_k", "min_p", "seed", "seed_high", "sample_index")


def gather_rows(
    rows: torch.Tensor, records: torch.Tensor, step: DeviceStep, draw: DeviceSamplingBatch, *, chained: bool
) -> None:
    """Fill `step` and `draw` for the sequences in `rows` [S]. A row of -1 is padding: a sequence of length 0."""
    _gather_kernel[(len(rows),)](
        rows, records, step.input_ids, step.positions, step.seq_lens, step.rows,
        draw.temperature, draw.top_p, draw.top_k, draw.min_p, draw.seeds, draw.sample_indices, draw.positions,
        WIDTH=RECORD_WIDTH, CHAINED=chained, launch_pdl=chained, num_warps=1,
    )  # fmt: skip


def advance_rows(rows: torch.Tensor, tokens: torch.Tensor, records: torch.Tensor, *, chained: bool) -> None:
    """Append tokens [S] to the sequences in `rows`. Padding, and a failed draw (-1), change nothing."""
    _advance_kernel[(len(rows),)](
        rows, tokens, records, WIDTH=RECORD_WIDTH, CHAINED=chained, launch_pdl=chained, num_warps=1
    )


@triton.jit
def _gather_kernel(
    rows, records, input_ids, positions, seq_lens, table_rows,
    temperature, top_p, top_k, min_p, seeds, sample_indices, next_positions,
    WIDTH: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    wait_for_previous(CHAINED)
    row = tl.load(rows + i)
    is_live = row >= 0
    row = tl.maximum(row, 0)
    record = records + row * WIDTH
    length = tl.where(is_live, tl.load(record + 1), 0)
    tl.store(input_ids + i, tl.where(is_live, tl.load(record), 0))
    tl.store(positions + i, tl.maximum(length - 1, 0))
    tl.store(seq_lens + i, length)
    tl.store(table_rows + i, row)
    tl.store(temperature + i, tl.load(record + 2).to(tl.float32, bitcast=True))
    tl.store(top_p + i, tl.load(record + 3).to(tl.float32, bitcast=True))
    tl.store(top_k + i, tl.load(record + 4))
    tl.store(min_p + i, tl.load(record + 5).to(tl.float32, bitcast=True))
    low = tl.load(record + 6).to(tl.int64) & 0xFFFFFFFF
    tl.store(seeds + i, (tl.load(record + 7).to(tl.int64) << 32) | low)
    tl.store(sample_indices + i, tl.load(record + 8))
    tl.store(next_positions + i, length)


@triton.jit
def _advance_kernel(rows, tokens, records, WIDTH: tl.constexpr, CHAINED: tl.constexpr):
    i = tl.program_id(0)
    wait_for_previous(CHAINED)
    row = tl.load(rows + i)
    token = tl.load(tokens + i)
    if (row >= 0) & (token >= 0):
        record = records + row * WIDTH
        tl.store(record, token)
        tl.store(record + 1, tl.load(record + 1) + 1)
