"""Draws with a top_k by ranks that each have the logits of a part of the vocabulary, without gathering these.

    rank 0   its best KEPT tokens ──┐               ┌─ its tokens that tie ──┐              ┌─ is u in its part? ─┐
    rank 1   its best KEPT tokens ──┴─ sum ─ cut ───┴─ with the last kept ───┴─ sum ─ mass ─┴─ then its token ────┴─ sum

The best of each part hold every token that is better than the k-th best of all. Tokens as good as that one stay, too,
however many there are: a rank that has more of them than it told looks for them in its row. So draws are exact, and a
captured step exchanges the same whatever its logits are. top_p and min_p beside a top_k cut what that leaves.

Scores are told as they are: a distance from the best rounds, and ranks have different bests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import CHUNK, HEAD, KEPT, SEGMENT, TOLD_HEADER, parted_top_k
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.sampling.draw import draw_below
from octavo.kernels.triton.sampling.edited_rows import SamplingWorkspace, edit_and_scan
from octavo.kernels.triton.sampling.entries import (
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
    distance,
    limit_in,
    load_filters,
    pivot_in,
    tile_of,
)
from octavo.kernels.triton.sampling.logits_scan import score_of
from octavo.kernels.triton.sampling.parted_draw import best_of_part, load_bests, share_of_all
from octavo.kernels.triton.sampling.places import pick

_TILE = 2048


class PartedTopK:
    """A rank's part of such draws. Entries without filters may be among them. add_up: as `PartedDraw` has it."""

    def __init__(
        self, rank: int, num_ranks: int, vocab_size: int, max_entries: int, device: torch.device,
        add_up: Callable[[torch.Tensor], None], workspace: SamplingWorkspace, *, chained: bool,
    ) -> None:  # fmt: skip
        self._rank, self._num_ranks, self._vocab_size = rank, num_ranks, vocab_size
        shapes = parted_top_k(num_ranks, max_entries)
        self.tensors = [torch.zeros(shape, device=device) for shape in shapes.values()]
        self._offers, self._ties, self._shares = self.tensors
        self._add_up, self._workspace, self._chained = add_up, workspace, chained

    def sample(self, logits: torch.Tensor, batch: DeviceSamplingBatch, tokens: torch.Tensor) -> None:
        """tokens [N] int32 = one draw per entry from logits [M, this rank's tokens]; -1 if a row has a NaN on any rank,
        or no token is left."""
        for told in self.turns(logits, batch, len(tokens)):
            self._add_up(told)
        tokens.copy_(self._shares[: len(tokens)])

    def turns(self, logits: torch.Tensor, batch: DeviceSamplingBatch, num: int) -> Iterator[torch.Tensor]:
        """What ranks have to add up, one after another. The last ones are the tokens."""
        scan, chained = self._workspace.scan, self._chained
        chunks, segments = triton.cdiv(logits.shape[1], CHUNK), CHUNK // SEGMENT
        source = edit_and_scan(logits, batch, self._workspace, has_edits=False, chained=chained)
        first, chunks_pad = self._rank * self._vocab_size // self._num_ranks, triton.next_power_of_2(chunks)
        launch: dict[str, Any] = {"CHAINED": chained, "launch_pdl": chained}
        ranks = {"RANK": self._rank, "RANKS": self._num_ranks, "KEPT": KEPT, "HEADER": TOLD_HEADER}
        ranks["EACH"] = TOLD_HEADER + 2 * KEPT
        scanned = scan.chunk_max, scan.chunk_sum, chunks
        _offer_kernel[(num,)](
            *source, scan.segment_max, *scanned, self._workspace.head, self._offers, first, **ranks,
            SEGMENT=SEGMENT, NUM=segments, HEAD=HEAD, SEGMENTS=triton.next_power_of_2(chunks * segments),
            CHUNKS=chunks_pad, **launch, num_warps=8,
        )  # fmt: skip
        launch["num_warps"] = 2  # for the few numbers of most entries
        yield self._offers[:num]
        pad = triton.next_power_of_2(self._num_ranks)
        ranks |= {"PAD": pad, "TIES": self._ties.shape[1], "TILE": _TILE, "FINITE": FINITE_KEY}
        _count_kernel[(num,)](*source, self._vocab_size, self._offers, self._ties, **ranks, **launch)
        yield self._ties[:num]
        _choose_kernel[(num,)](
            *source, self._vocab_size, *scanned, self._offers, self._ties, self._shares, first, **ranks,
            CHUNK=CHUNK, CHUNKS=chunks_pad, **launch,
        )  # fmt: skip
        yield self._shares[: -(-num // 4) * 4]


@triton.jit
def _offer_kernel(
    logits, entries, stride, edited, edited_stride, vocab,
    segment_max, chunk_max, chunk_sum, num_chunks, head, offers, first,
    RANK: tl.constexpr, RANKS: tl.constexpr, KEPT: tl.constexpr, HEADER: tl.constexpr, EACH: tl.constexpr,
    SEGMENT: tl.constexpr, NUM: tl.constexpr, HEAD: tl.constexpr, SEGMENTS: tl.constexpr, CHUNKS: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """The best KEPT tokens of this rank, in id order, and the best score of the others. No rank's are left from
    before."""
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    row = load_int(entries, i, LOGITS_ROW).to(tl.int64)
    temperature = load_float(entries, i, TEMPERATURE)
    best, token, mass, maxima = best_of_part(
        logits, row, stride, vocab, i, temperature, segment_max, chunk_max, chunk_sum, num_chunks, first,
        SEGMENT, NUM, SEGMENTS, CHUNKS,
    )  # fmt: skip
    segment = tl.arange(0, SEGMENTS)
    inside, _slot = _best_of(maxima[None, :], HEAD)
    inside = tl.sum(inside.to(tl.int32), 0) > 0
    slot = tl.cumsum(inside.to(tl.int32), 0) - 1
    tl.store(head + i * HEAD + slot, segment, mask=inside)
    tl.debug_barrier()
    nth = tl.arange(0, HEAD)
    has_some = nth < tl.sum(inside.to(tl.int32), 0)
    chosen = tl.load(head + i * HEAD + nth, mask=has_some, other=0)
    at = chosen[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    mask = has_some[:, None] & (at < vocab)
    x = tl.load(logits + row * stride + at, mask=mask, other=-float("inf")).to(tl.float32)
    scores = score_of(x, temperature)
    is_told, place = _best_of(scores, KEPT)
    left_out = tl.max(tl.max(tl.where(is_told, -float("inf"), scores), 1), 0)
    left_out = tl.maximum(left_out, tl.max(tl.where(inside, -float("inf"), maxima), 0))

    column = tl.arange(0, 4 * KEPT)
    own = offers + (i * RANKS + RANK) * EACH
    for rank in tl.static_range(RANKS):
        if rank != RANK:
            other = offers + (i * RANKS + rank) * EACH
            tl.store(other + column, tl.zeros([4 * KEPT], tl.float32), mask=column < EACH)
    tl.store(own, best)
    tl.store(own + 1, token)
    tl.store(own + 2, mass)
    tl.store(own + 3, left_out)
    tl.store(own + HEADER + place, scores, mask=is_told)
    tl.store(own + HEADER + KEPT + place, (first + at).to(tl.float32), mask=is_told)


@triton.jit
def _count_kernel(
    logits, entries, stride, edited, edited_stride, vocab, whole_vocab, offers, ties,
    RANK: tl.constexpr, RANKS: tl.constexpr, KEPT: tl.constexpr, HEADER: tl.constexpr, EACH: tl.constexpr,
    PAD: tl.constexpr, TIES: tl.constexpr, TILE: tl.constexpr, FINITE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """How many tokens of this rank are as good as the last that is kept."""
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    told = offers + i * RANKS * EACH
    _rank, _bests, best, is_broken = load_bests(told, RANKS, PAD, EACH)
    temperature, filters = load_float(entries, i, TEMPERATURE), load_filters(entries, i)
    count = tl.full([], 0, tl.int32)
    if can_cut(filters, whole_vocab) & (temperature != 0.0) & (is_broken == 0):
        key = _told_keys(told, best, RANKS, KEPT, HEADER, EACH, PAD)
        limit = limit_in(key, filters, whole_vocab, FINITE)
        _away, next_key = distance(tl.load(told + RANK * EACH + 3), best)
        if next_key <= limit:
            row = load_int(entries, i, LOGITS_ROW).to(tl.int64)
            where = (logits, row, stride, edited, edited_stride, i, False, vocab, temperature, best)
            for start in range(0, vocab, TILE):
                _weight, keys = tile_of(where, start, TILE, False)
                count += tl.sum((keys == limit).to(tl.int32), 0)
        else:
            is_own = (tl.arange(0, PAD) == RANK)[:, None]
            count = tl.sum(tl.sum((is_own & (key == limit)).to(tl.int32), 1), 0)
    place = tl.arange(0, TIES)
    tl.store(ties + i * TIES + place, tl.where(place == RANK, count, 0).to(tl.float32))


@triton.jit
def _choose_kernel(
    logits, entries, stride, edited, edited_stride, vocab, whole_vocab,
    chunk_max, chunk_sum, num_chunks, offers, ties, shares, first,
    RANK: tl.constexpr, RANKS: tl.constexpr, KEPT: tl.constexpr, HEADER: tl.constexpr, EACH: tl.constexpr,
    PAD: tl.constexpr, TIES: tl.constexpr, TILE: tl.constexpr, FINITE: tl.constexpr, CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """The token on the rank that has it, and 0 on others. If there is none, -1 on the first rank."""
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    told = offers + i * RANKS * EACH
    rank, bests, best, is_broken = load_bests(told, RANKS, PAD, EACH)
    row = load_int(entries, i, LOGITS_ROW).to(tl.int64)
    temperature, filters = load_float(entries, i, TEMPERATURE), load_filters(entries, i)
    if can_cut(filters, whole_vocab) & (temperature != 0.0) & (is_broken == 0):
        where = (logits, row, stride, edited, edited_stride, i, False, vocab, temperature, best)
        tied = tl.load(ties + i * TIES + rank, mask=rank < RANKS, other=0.0).to(tl.int32)
        own = told + RANK * EACH
        share = _share_of_kept(
            where, told, own, tied, filters, uniform(entries, i), best, whole_vocab, first,
            RANK, RANKS, KEPT, HEADER, EACH, PAD, TILE, FINITE,
        )  # fmt: skip
    else:
        share = share_of_all(
            logits, row, stride, vocab, i, temperature, uniform(entries, i), told, rank, bests, best, is_broken,
            chunk_max, chunk_sum, num_chunks, first, RANK, RANKS, EACH, CHUNK, CHUNKS,
        )  # fmt: skip
    tl.store(shares + i, share.to(tl.float32))


@triton.jit
def _share_of_kept(
    where, told, own, tied, filters, u, best, whole_vocab, first,
    RANK: tl.constexpr, RANKS: tl.constexpr, KEPT: tl.constexpr, HEADER: tl.constexpr, EACH: tl.constexpr,
    PAD: tl.constexpr, TILE: tl.constexpr, FINITE: tl.constexpr,
):  # fmt: skip
    """tied: by rank, how many tokens are as good as the last that top_k keeps."""
    rank = tl.arange(0, PAD)
    key = _told_keys(told, best, RANKS, KEPT, HEADER, EACH, PAD)
    pivot = limit_in(key, filters, whole_vocab, FINITE)
    mass = tl.where(key < pivot, tl.exp(-key.to(tl.float32, bitcast=True)), 0.0)
    heavy = tl.exp(-pivot.to(tl.float32, bitcast=True)).to(tl.float64)
    num_stay = tl.sum(tied, 0)
    top_p, _top_k, _min_p = filters
    if top_p < 1.0:
        kept = tl.sum(tl.sum(mass, 1).to(tl.float64), 0) + num_stay.to(tl.float64) * heavy
        goal = tl.maximum(top_p.to(tl.float64) * kept, 1e-300)
        limit = pivot
        pivot = pivot_in(key, mass, goal, limit)
        mass = tl.where(key < pivot, mass, 0.0)
        tied = tl.where(pivot == limit, tied, tl.sum((key == pivot).to(tl.int32), 1))
        heavy = tl.exp(-pivot.to(tl.float32, bitcast=True)).to(tl.float64)
        above = tl.sum(tl.sum(mass, 1).to(tl.float64), 0)
        num_stay = tl.minimum(tl.ceil((goal - above) / heavy), tl.sum(tied, 0).to(tl.float64)).to(tl.int32)
    # of equals the first ones stay, and ranks have tokens in their own order
    stay = tl.minimum(tl.maximum(num_stay - (tl.cumsum(tied, 0) - tied), 0), tied)
    of_ranks = tl.sum(mass, 1).to(tl.float64) + stay.to(tl.float64) * heavy
    target = u * tl.sum(of_ranks, 0)
    place, before = pick(of_ranks, target, rank)
    share = tl.full([], 0, tl.int32)
    if place == RANK:
        num_tied = tl.sum(tl.where(rank == RANK, stay, 0), 0)
        _away, next_key = distance(tl.load(own + 3), best)
        if next_key <= pivot:
            share = first + draw_below(where, pivot, num_tied, target - before, TILE, False)
        else:
            nth = tl.arange(0, KEPT)
            away, own_key = distance(tl.load(own + HEADER + nth), best)
            is_tied = own_key == pivot
            stays = (own_key < pivot) | (is_tied & (tl.cumsum(is_tied.to(tl.int32), 0) <= num_tied))
            chosen, _before = pick(tl.where(stays, tl.exp(-away), 0.0), target - before, nth)
            share = tl.load(own + HEADER + KEPT + chosen).to(tl.int32)
    return share


@triton.jit
def _told_keys(
    told, best, RANKS: tl.constexpr, KEPT: tl.constexpr, HEADER: tl.constexpr, EACH: tl.constexpr, PAD: tl.constexpr
):  # fmt: skip
    """The distances of all that was told from the best of all: [PAD, KEPT]."""
    rank = tl.arange(0, PAD)[:, None]
    at = told + rank * EACH + HEADER + tl.arange(0, KEPT)[None, :]
    _away, key = distance(tl.load(at, mask=rank < RANKS, other=-float("inf")), best)
    return key


@triton.jit
def _best_of(x, COUNT: tl.constexpr):
    """Which of x [A, B] are its COUNT best, the first ones of equals, and the place of each among these."""
    bits = x.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as the numbers are
    low = tl.min(tl.min(order, 1), 0).to(tl.int64)
    high = tl.max(tl.max(order, 1), 0).to(tl.int64)
    while low < high:  # ends early where the best are told apart
        middle = low + (high - low + 1) // 2
        count = tl.sum(tl.sum((order >= middle.to(tl.int32)).to(tl.int32), 1), 0)
        low = tl.where(count >= COUNT, middle, low)
        high = tl.where(count == COUNT, middle, tl.where(count > COUNT, high, middle - 1))
    pivot = low.to(tl.int32)
    is_better, is_tied = order > pivot, order == pivot
    room = COUNT - tl.sum(tl.sum(is_better.to(tl.int32), 1), 0)
    is_best = is_better | (is_tied & (_places(is_tied) < room))
    return is_best, _places(is_best)


@triton.jit
def _places(is_in):
    """How many of those before it are in."""
    inside = is_in.to(tl.int32)
    in_row = tl.sum(inside, 1)
    return tl.cumsum(inside, 1) - inside + (tl.cumsum(in_row, 0) - in_row)[:, None]
