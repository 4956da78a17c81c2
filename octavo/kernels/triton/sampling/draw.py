"""Draw tokens on the device without sorting the vocabulary: the op `sample`.

Semantics are those of `kernels/reference/sampling.py`, including the draw: the first token in id order whose cumulative
mass exceeds u * (mass kept), with u from counter-based Philox. Sums are float32 within a segment or chunk and float64
across, so a token may differ from the reference if u falls within about 1e-6 of a boundary.

    edit, scan   (`edited_rows.py`)
    draw         one program per entry
                   temperature 0     the best segment, then the best token in it
                   no filter         the chunk in which u falls, then the token in it
                   filters           bisection on 8192 scores in registers, those of the HEAD segments with the largest
                                     maxima, if the filters' thresholds lie above the largest maximum left out
    search       entries whose filters keep more than that (a flat distribution): bisection over the whole row
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import CHUNK, HEAD, SEGMENT
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.sampling.edited_rows import SamplingWorkspace, edit_and_scan, load_row
from octavo.kernels.triton.sampling.entries import (
    IS_EDITED,
    LOGITS_ROW,
    TEMPERATURE,
    DeviceSamplingBatch,
    load_float,
    load_int,
    uniform,
)
from octavo.kernels.triton.sampling.filters import (
    FINITE_KEY,
    can_cut,
    cut_of_head,
    cut_of_row,
    distance,
    load_filters,
    tile_of,
)
from octavo.kernels.triton.sampling.logits_scan import score_of
from octavo.kernels.triton.sampling.places import first_place, pick


def sample(
    logits: torch.Tensor,
    batch: DeviceSamplingBatch,
    tokens: torch.Tensor,
    workspace: SamplingWorkspace,
    *,
    has_edits: bool,
    has_filters: bool,
    chained: bool = False,
) -> None:
    """tokens [N] int32 = one draw per entry from logits [M, V], float32, bfloat16 or float16; -1 if a row has a NaN or
    no token is left. has_edits, has_filters: whether any entry may have edits or filters; False saves kernels."""
    num_entries, chunks, scan = len(tokens), triton.cdiv(logits.shape[1], CHUNK), workspace.scan
    chunks_pad = triton.next_power_of_2(chunks)
    source = edit_and_scan(logits, batch, workspace, has_edits=has_edits, chained=chained)
    launch = {"CHAINED": chained, "launch_pdl": chained}
    _draw_kernel[(num_entries,)](
        *source, scan.segment_max, scan.chunk_max, scan.chunk_sum, chunks, workspace.head, workspace.undecided, tokens,
        SEGMENT=SEGMENT, CHUNK=CHUNK, HEAD=HEAD, SEGMENTS=triton.next_power_of_2(chunks * (CHUNK // SEGMENT)),
        CHUNKS=chunks_pad, EDITS=has_edits, FILTERS=has_filters, FINITE=FINITE_KEY, **launch, num_warps=8,
    )  # fmt: skip
    if has_filters:
        _search_kernel[(num_entries,)](
            *source, scan.chunk_max, chunks, workspace.undecided, tokens,
            TILE=8192, CHUNKS=chunks_pad, EDITS=has_edits, FINITE=FINITE_KEY, **launch, num_warps=16,
        )  # fmt: skip


@triton.jit
def _draw_kernel(
    logits, entries, stride, edited, edited_stride, vocab,
    segment_max, chunk_max, chunk_sum, num_chunks, head, undecided, tokens,
    SEGMENT: tl.constexpr, CHUNK: tl.constexpr, HEAD: tl.constexpr, SEGMENTS: tl.constexpr, CHUNKS: tl.constexpr,
    EDITS: tl.constexpr, FILTERS: tl.constexpr, FINITE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    is_edited = load_int(entries, i, IS_EDITED) != 0 if EDITS else False
    row = load_int(entries, i, LOGITS_ROW).to(tl.int64)
    temperature = load_float(entries, i, TEMPERATURE)
    filters = load_filters(entries, i)
    num_segments = num_chunks * (CHUNK // SEGMENT)
    segment = tl.arange(0, SEGMENTS)
    maxima = tl.load(segment_max + i * num_segments + segment, mask=segment < num_segments, other=-float("inf"))
    best = tl.max(maxima, 0)
    has_nan = tl.max((maxima != maxima).to(tl.int32), 0) > 0
    tl.store(undecided + i, 0)
    if has_nan | (best == -float("inf")):
        tl.store(tokens + i, -1)
    elif temperature == 0.0:
        at = first_place(maxima == best, segment) * SEGMENT + tl.arange(0, SEGMENT)
        x = load_row(logits, row, stride, edited, edited_stride, i, is_edited, at, at < vocab, EDITS)
        tl.store(tokens + i, first_place(x == best, at))
    else:
        chunk = tl.arange(0, CHUNKS)
        live = chunk < num_chunks
        top = tl.load(chunk_max + i * num_chunks + chunk, mask=live, other=-float("inf"))
        sums = tl.load(chunk_sum + i * num_chunks + chunk, mask=live, other=0.0)
        mass = tl.where(top == best, sums, sums * tl.exp(top - best))
        mass = tl.where(top == -float("inf"), 0.0, mass)
        u = uniform(entries, i)
        if FILTERS & can_cut(filters, vocab):
            token = _draw_from_head(
                logits, row, stride, edited, edited_stride, i, is_edited, vocab, temperature, best, maxima,
                tl.sum(mass.to(tl.float64), 0), filters, u, head, SEGMENT, HEAD, SEGMENTS, EDITS, FINITE,
            )  # fmt: skip
            tl.store(tokens + i, token)
            tl.store(undecided + i, (token < 0).to(tl.int32))
        else:
            target = u * tl.sum(mass.to(tl.float64), 0)
            place, before = pick(mass, target, chunk)
            at = place * CHUNK + tl.arange(0, CHUNK)
            x = load_row(logits, row, stride, edited, edited_stride, i, is_edited, at, at < vocab, EDITS)
            away, _key = distance(score_of(x, temperature), best)
            token, _before = pick(tl.exp(-away), target - before, tl.arange(0, CHUNK))
            tl.store(tokens + i, place * CHUNK + token)


@triton.jit
def _draw_from_head(
    logits, row, stride, edited, edited_stride, i, is_edited, vocab, temperature, best, maxima,
    total, filters, u, head,
    SEGMENT: tl.constexpr, HEAD: tl.constexpr, SEGMENTS: tl.constexpr, EDITS: tl.constexpr, FINITE: tl.constexpr,
):  # fmt: skip
    """The token, or -1 if the filters keep more than the head holds."""
    segment = tl.arange(0, SEGMENTS)
    _segment_away, key = distance(maxima, best)
    # the farthest cut, to 16 bits, that leaves at most HEAD segments
    cut = tl.full([], 0, tl.int32)
    for bit in tl.static_range(15):
        try_cut = cut + (1 << (30 - bit))
        fits = (tl.sum((key < try_cut).to(tl.int32), 0) <= HEAD) & (try_cut <= FINITE)
        cut = tl.where(fits, try_cut, cut)
    if tl.sum((key <= FINITE).to(tl.int32), 0) <= HEAD:
        cut = tl.full([], FINITE + 1, tl.int32)
    inside = key < cut
    num = tl.sum(inside.to(tl.int32), 0)
    slot = tl.cumsum(inside.to(tl.int32), 0) - 1
    tl.store(head + i * HEAD + slot, segment, mask=inside)
    tl.debug_barrier()
    nth = tl.arange(0, HEAD)
    chosen = tl.load(head + i * HEAD + nth, mask=nth < num, other=0)
    # every token with a key below this is in the head
    known = tl.minimum(tl.min(tl.where(inside, 0x7FFFFFFF, key), 0), FINITE + 1)

    at = chosen[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    mask = (nth < num)[:, None] & (at < vocab)
    x = load_row(logits, row, stride, edited, edited_stride, i, is_edited, at, mask, EDITS)
    away, key = distance(score_of(x, temperature), best)
    mass = tl.where(key <= FINITE, tl.exp(-away), 0.0)

    mass, complete = cut_of_head(key, mass, filters, known, total, vocab, FINITE)
    in_segment = tl.sum(mass, 1)
    target = u * tl.sum(in_segment.to(tl.float64), 0)
    place, before = pick(in_segment, target, nth)
    here = tl.sum(tl.where(nth[:, None] == place, mass, 0.0), 0)
    offset, _before = pick(here, target - before, tl.arange(0, SEGMENT))
    token = tl.sum(tl.where(nth == place, chosen, 0), 0) * SEGMENT + offset
    return tl.where(complete, token, -1)


@triton.jit
def _search_kernel(
    logits, entries, stride, edited, edited_stride, vocab, chunk_max, num_chunks, undecided, tokens,
    TILE: tl.constexpr, CHUNKS: tl.constexpr, EDITS: tl.constexpr, FINITE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Decide an entry by reading its whole row in every step of every bisection."""
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    if tl.load(undecided + i) != 0:
        is_edited = load_int(entries, i, IS_EDITED) != 0 if EDITS else False
        row = load_int(entries, i, LOGITS_ROW).to(tl.int64)
        temperature = load_float(entries, i, TEMPERATURE)
        chunk = tl.arange(0, CHUNKS)
        best = tl.max(tl.load(chunk_max + i * num_chunks + chunk, mask=chunk < num_chunks, other=-float("inf")), 0)
        where = (logits, row, stride, edited, edited_stride, i, is_edited, vocab, temperature, best)
        pivot, num_tied = cut_of_row(where, load_filters(entries, i), FINITE, TILE, EDITS)
        target = uniform(entries, i) * _mass_below(where, pivot, num_tied, TILE, EDITS)
        tl.store(tokens + i, draw_below(where, pivot, num_tied, target, TILE, EDITS))


@triton.jit
def _mass_below(where, pivot, num_tied, TILE: tl.constexpr, EDITS: tl.constexpr):
    """The mass of the tokens with keys below the pivot and the first num_tied with the pivot's."""
    total = tl.full([], 0.0, tl.float64)
    tied_before = tl.full([], 0, tl.int32)
    for start in range(0, where[7], TILE):
        weight, key = tile_of(where, start, TILE, EDITS)
        rank = tl.cumsum((key == pivot).to(tl.int32), 0) - 1 + tied_before
        stays = (key < pivot) | ((key == pivot) & (rank < num_tied))
        total += tl.sum(tl.where(stays, weight, 0.0), 0).to(tl.float64)
        tied_before += tl.sum((key == pivot).to(tl.int32), 0)
    return total


@triton.jit
def draw_below(where, pivot, num_tied, target, TILE: tl.constexpr, EDITS: tl.constexpr):
    """The first of these tokens whose cumulative mass exceeds the target."""
    token = tl.full([], -1, tl.int32)
    before = tl.full([], 0.0, tl.float64)
    tied_before = tl.full([], 0, tl.int32)
    for start in range(0, where[7], TILE):
        if (before <= target) | (token < 0):
            weight, key = tile_of(where, start, TILE, EDITS)
            rank = tl.cumsum((key == pivot).to(tl.int32), 0) - 1 + tied_before
            stays = (key < pivot) | ((key == pivot) & (rank < num_tied))
            mass = tl.where(stays, weight, 0.0)
            place, _before = pick(mass, target - before, tl.arange(0, TILE))
            token = tl.where(place >= 0, start + place, token)
            before += tl.sum(mass, 0).to(tl.float64)
            tied_before += tl.sum((key == pivot).to(tl.int32), 0)
    return token
