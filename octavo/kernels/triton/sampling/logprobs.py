"""What is reported of logits: the ops `top_logprobs` and `processed_logits`, as `kernels/reference/` defines them.

`top_logprobs`, in k small steps whatever the vocabulary:

    scan     every row, once (`logits_scan.py`); also counts the tokens that beat the chosen one
    collect  k rounds: the segment with the largest maximum gives up its best token, and offers its next best

NaN and -inf are ordered as LOWEST, the least finite number, so -inf means only that a segment is exhausted.

`processed_logits`, what tokens are drawn from:

    edit, scan   as in a draw (`draw.py`)
    process      one program per entry: find where its filters cut, by the bisection over the whole row that a draw
                 falls back on; then its logits over the temperature, -inf where a token is cut

A draw sums in another order if the best segments hold every token that is kept, so a token within about 1e-6 of a
boundary may be drawn and cut here. A drawn token is always kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import CHUNK, SEGMENT
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
from octavo.kernels.triton.sampling.logits_scan import LogitsScan, scan_chunk, score_of

_LOWEST = -3.4028234663852886e38
_NAN_FLAG = 1 << 20  # added to a chunk's number of better tokens if the chunk holds a NaN


def top_logprobs(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    ids: torch.Tensor,
    logprobs: torch.Tensor,
    ranks: torch.Tensor,
    scan: LogitsScan,
    *,
    as_logits: bool = False,
    chained: bool = False,
) -> None:
    """logits [N, V] and chosen tokens [N] -> ids and logprobs [N, k+1], the chosen token first and then the k best,
    and the chosen tokens' ranks [N] (1 = best). as_logits: report logits in place of logprobs."""
    num_rows, vocab_size = logits.shape
    chunks = triton.cdiv(vocab_size, CHUNK)
    _rank_scan_kernel[(num_rows, chunks)](
        logits, logits.stride(0), vocab_size, tokens, scan.segment_max, scan.chunk_max, scan.chunk_sum,
        scan.chunk_better, chunks, SEGMENT=SEGMENT, SEGMENTS=CHUNK // SEGMENT, LOWEST=_LOWEST, NAN_FLAG=_NAN_FLAG,
        CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip
    _collect_kernel[(num_rows,)](
        logits, logits.stride(0), vocab_size, tokens, scan.segment_max, scan.chunk_max, scan.chunk_sum,
        scan.chunk_better, chunks, ids, logprobs, ranks, ids.shape[1],
        SEGMENT=SEGMENT, NUM=CHUNK // SEGMENT, SEGMENTS=triton.next_power_of_2(chunks * (CHUNK // SEGMENT)),
        CHUNKS=triton.next_power_of_2(chunks), LOWEST=_LOWEST, NAN_FLAG=_NAN_FLAG, AS_LOGITS=as_logits,
        CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


@triton.jit
def _order(x, LOWEST: tl.constexpr):
    """x for ordering; comparisons with a NaN are false."""
    return tl.where(x > LOWEST, x, LOWEST)


@triton.jit
def _logprob(x, best, log_mass, LOWEST: tl.constexpr):
    """The logprob of an ordered x, in float64; log_mass is relative to the best. Tokens equal to an infinite best share
    all of the mass."""
    away = tl.where(x == best, 0.0, x.to(tl.float64) - best.to(tl.float64))
    return tl.where(x > LOWEST, away - log_mass, log_mass - float("inf")).to(tl.float32)


@triton.jit
def _reported(logit, best, log_mass, LOWEST: tl.constexpr, AS_LOGITS: tl.constexpr):
    return logit if AS_LOGITS else _logprob(_order(logit, LOWEST), best, log_mass, LOWEST)


@triton.jit
def _rank_scan_kernel(
    logits, stride, vocab, tokens, segment_max, chunk_max, chunk_sum, chunk_better, num_chunks,
    SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, LOWEST: tl.constexpr, NAN_FLAG: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    chunk = tl.program_id(1)
    row = logits + i.to(tl.int64) * stride
    token = tl.load(tokens + i)
    at = (chunk * SEGMENTS + tl.arange(0, SEGMENTS))[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    x = tl.load(row + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
    has_nan = tl.max(tl.max((x != x).to(tl.int32), 1), 0)
    x = tl.where(at < vocab, _order(x, LOWEST), -float("inf"))
    chosen = _order(tl.load(row + token).to(tl.float32), LOWEST)
    to = i * num_chunks + chunk
    better = ((x > chosen) | ((x == chosen) & (at < token))) & (at < vocab)
    tl.store(chunk_better + to, tl.sum(tl.sum(better.to(tl.int32), 1), 0) + has_nan * NAN_FLAG)
    scan_chunk(x, 1.0, segment_max + to * SEGMENTS, chunk_max + to, chunk_sum + to, SEGMENTS)


@triton.jit
def _collect_kernel(
    logits, stride, vocab, tokens, segment_max, chunk_max, chunk_sum, chunk_better, num_chunks,
    ids, logprobs, ranks, width,
    SEGMENT: tl.constexpr, NUM: tl.constexpr, SEGMENTS: tl.constexpr, CHUNKS: tl.constexpr,
    LOWEST: tl.constexpr, NAN_FLAG: tl.constexpr, AS_LOGITS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    row = logits + i.to(tl.int64) * stride
    chunk = tl.arange(0, CHUNKS)
    live = chunk < num_chunks
    top = tl.load(chunk_max + i * num_chunks + chunk, mask=live, other=-float("inf"))
    best = tl.max(top, 0)
    sums = tl.load(chunk_sum + i * num_chunks + chunk, mask=live, other=0.0).to(tl.float64)
    mass = tl.where(top == best, sums, sums * tl.exp((top - best).to(tl.float64)))
    log_mass = tl.log(tl.sum(tl.where(live, mass, 0.0), 0))
    better = tl.load(chunk_better + i * num_chunks + chunk, mask=live, other=0)
    tl.store(ranks + i, 1 + tl.sum(better % NAN_FLAG, 0))
    log_mass = tl.where(tl.max(better, 0) >= NAN_FLAG, float("nan"), log_mass)

    token = tl.load(tokens + i)
    tl.store(ids + i * width, token)
    tl.store(logprobs + i * width, _reported(tl.load(row + token).to(tl.float32), best, log_mass, LOWEST, AS_LOGITS))
    segment = tl.arange(0, SEGMENTS)
    maxima = tl.load(segment_max + i * num_chunks * NUM + segment, mask=segment < num_chunks * NUM, other=-float("inf"))
    # segments without a live token never win: their index is past all others
    maxima = tl.where(segment * SEGMENT < vocab, maxima, -float("inf"))
    last_id = tl.full([SEGMENTS], -1, tl.int32)
    for place in range(1, width):
        value = tl.max(maxima, 0)
        winner = tl.min(tl.where(maxima == value, segment, SEGMENTS - 1), 0)
        after = tl.max(tl.where(segment == winner, last_id, -1), 0)
        at = winner * SEGMENT + tl.arange(0, SEGMENT)
        x = tl.load(row + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
        x = tl.where(at < vocab, _order(x, LOWEST), -float("inf"))
        found = tl.min(tl.where((x == value) & (at > after) & (at < vocab), at, 0x7FFFFFFF), 0)
        tl.store(ids + i * width + place, found)
        logit = tl.load(row + found).to(tl.float32)
        tl.store(logprobs + i * width + place, _reported(logit, best, log_mass, LOWEST, AS_LOGITS))
        # the segment offers next: an equal token further on, or else the best of the lesser ones
        equal = tl.sum(((x == value) & (at > found) & (at < vocab)).to(tl.int32), 0) > 0
        lesser = tl.max(tl.where(x < value, x, -float("inf")), 0)
        is_winner = segment == winner
        maxima = tl.where(is_winner, tl.where(equal, value, lesser), maxima)
        last_id = tl.where(is_winner, tl.where(equal, found, -1), last_id)


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

    # a temperature of 0 keeps all tokens, any other all that can be drawn, unless a filter cuts
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
