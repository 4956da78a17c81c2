"""What tokens are drawn from: the op `processed_logits`, semantics of `kernels/reference/sampling.py`.

    edit, scan   as a draw does (`draw.py`)
    process      one program an entry: where its filters cut, by the bisection over the whole row that a draw falls back
                 on; then its logits over the temperature, -inf where nothing is kept

A draw cuts by other sums where the best segments hold all that is kept, so a token within about 1e-6 of a
boundary may be drawn and cut here. What was drawn is kept, whatever the sums say.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.sampling.edited_rows import SamplingWorkspace, edit_and_scan, load_row
from octavo.kernels.triton.sampling.entries import (
    IS_EDITED,
    LOGITS_ROW,
    TEMPERATURE,
    DeviceSamplingBatch,
    load_float,
    load_int,
)
from octavo.kernels.triton.sampling.filters import FINITE_KEY, can_cut, cut_of_row, distance, load_filters
from octavo.kernels.triton.sampling.logits_scan import CHUNK, score_of


def processed_logits(
    logits: torch.Tensor,
    batch: DeviceSamplingBatch,
    drawn: torch.Tensor,
    processed: torch.Tensor,
    workspace: SamplingWorkspace,
    *,
    chained: bool = False,
) -> None:
    """logits [M, V] and the tokens drawn [N] -> processed [N, V] float32. workspace: one with room for edits."""
    chunks = triton.cdiv(logits.shape[1], CHUNK)
    source = edit_and_scan(logits, batch, workspace, has_edits=True, chained=chained)
    _process_kernel[(len(processed),)](
        *source, workspace.scan.chunk_max, chunks,
        drawn, processed, processed.stride(0), TILE=8192, CHUNKS=triton.next_power_of_2(chunks), FINITE=FINITE_KEY,
        CHAINED=chained, launch_pdl=chained, num_warps=16,
    )  # fmt: skip


@triton.jit
def _process_kernel(
    logits, entries, stride, edited, edited_stride, vocab,
    chunk_max, num_chunks, drawn, processed, processed_stride,
    TILE: tl.constexpr, CHUNKS: tl.constexpr, FINITE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    is_edited = load_int(entries, i, IS_EDITED) != 0
    row = load_int(entries, i, LOGITS_ROW).to(tl.int64)
    temperature = load_float(entries, i, TEMPERATURE)
    filters = load_filters(entries, i)
    chunk = tl.arange(0, CHUNKS)
    best = tl.max(tl.load(chunk_max + i * num_chunks + chunk, mask=chunk < num_chunks, other=-float("inf")), 0)
    where = (logits, row, stride, edited, edited_stride, i, is_edited, vocab, temperature, best)

    # a temperature of 0 keeps all; another all that can be drawn, unless a filter says less
    pivot = tl.where(temperature == 0.0, 0x7FFFFFFF, FINITE + 1)
    num_tied = tl.full([], 0, tl.int32)
    token = tl.load(drawn + i)
    if (temperature != 0.0) & can_cut(filters, vocab):
        pivot, num_tied = cut_of_row(where, filters, FINITE, TILE, True)
    out = processed + i.to(tl.int64) * processed_stride
    tied_before = tl.full([], 0, tl.int32)
    for start in range(0, vocab, TILE):
        at = start + tl.arange(0, TILE)
        x = load_row(logits, row, stride, edited, edited_stride, i, is_edited, at, at < vocab, True)
        scores = score_of(x, temperature)
        _away, key = distance(scores, best)
        is_tied = (key == pivot).to(tl.int32)
        rank = tl.cumsum(is_tied, 0) - 1 + tied_before
        stays = (key < pivot) | ((key == pivot) & (rank < num_tied)) | (at == token)
        tl.store(out + at, tl.where(stays, scores, -float("inf")), mask=at < vocab)
        tied_before += tl.sum(is_tied, 0)
