"""Draws by ranks that each have the logits of a part of the vocabulary, without gathering these.

    rank 0   scan ── best logit, its token, mass ──┐              ┌── is u in its part? ──┐
    rank 1   scan ── best logit, its token, mass ──┴─ all_reduce ─┴── then its token ─────┴─ all_reduce ── the token

For entries without edits and filters. Semantics are those of `draw.py`; masses are added up in another order, so a
token may differ from one rank's if u falls within about 1e-6 of a boundary. All ranks draw the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.sizes import CHUNK, SEGMENT, offer_width, parted_draw
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.sampling.edited_rows import SamplingWorkspace, edit_and_scan
from octavo.kernels.triton.sampling.entries import (
    LOGITS_ROW,
    TEMPERATURE,
    DeviceSamplingBatch,
    load_float,
    load_int,
    uniform,
)
from octavo.kernels.triton.sampling.filters import distance
from octavo.kernels.triton.sampling.logits_scan import score_of
from octavo.kernels.triton.sampling.places import first_place, pick


class PartedDraw:
    """A rank's part of such draws. add_up: replaces a float32 tensor by the sum of all ranks'."""

    def __init__(
        self, rank: int, num_ranks: int, vocab_size: int, max_entries: int, device: torch.device,
        add_up: Callable[[torch.Tensor], None], workspace: SamplingWorkspace, *, chained: bool,
    ) -> None:  # fmt: skip
        assert vocab_size < 1 << 24, f"float32 does not hold {vocab_size} token ids"
        self._rank, self._num_ranks, self._first = rank, num_ranks, rank * vocab_size // num_ranks
        shapes = parted_draw(num_ranks, max_entries)
        self._offers, self._shares = self.tensors = [torch.zeros(shape, device=device) for shape in shapes.values()]
        self._add_up, self._workspace, self._chained = add_up, workspace, chained

    def sample(self, logits: torch.Tensor, batch: DeviceSamplingBatch, tokens: torch.Tensor) -> None:
        """tokens [N] int32 = one draw per entry from logits [M, this rank's tokens]; -1 if a row has a NaN on any rank,
        or no token is left."""
        offers, shares = self.offer(logits, batch, len(tokens))
        self._add_up(offers)
        self.choose(logits, batch, len(tokens))
        self._add_up(shares)
        tokens.copy_(shares[: len(tokens)])

    def offer(self, logits: torch.Tensor, batch: DeviceSamplingBatch, num: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what ranks have to add up: before `choose`, and after it."""
        chunks, scan, chained = triton.cdiv(logits.shape[1], CHUNK), self._workspace.scan, self._chained
        edit_and_scan(logits, batch, self._workspace, has_edits=False, chained=chained)
        width = offer_width(self._num_ranks)
        _offer_kernel[(num,)](
            logits, batch.entries, logits.stride(0), logits.shape[1], scan.segment_max, scan.chunk_max, scan.chunk_sum,
            chunks, self._offers, self._first, RANK=self._rank, WIDTH=width, PAD=triton.next_power_of_2(width),
            SEGMENT=SEGMENT, NUM=CHUNK // SEGMENT, SEGMENTS=triton.next_power_of_2(chunks * (CHUNK // SEGMENT)),
            CHUNKS=triton.next_power_of_2(chunks), CHAINED=chained, launch_pdl=chained, num_warps=8,
        )  # fmt: skip
        return self._offers[:num], self._shares[: -(-num // 4) * 4]

    def choose(self, logits: torch.Tensor, batch: DeviceSamplingBatch, num: int) -> None:
        """With all ranks' offers, fill in this rank's shares of the tokens."""
        chunks, scan, chained = triton.cdiv(logits.shape[1], CHUNK), self._workspace.scan, self._chained
        _choose_kernel[(num,)](
            logits, batch.entries, logits.stride(0), logits.shape[1], scan.chunk_max, scan.chunk_sum, chunks,
            self._offers, self._shares, self._first, RANK=self._rank, RANKS=self._num_ranks,
            WIDTH=offer_width(self._num_ranks), PAD=triton.next_power_of_2(self._num_ranks), CHUNK=CHUNK,
            CHUNKS=triton.next_power_of_2(chunks), CHAINED=chained, launch_pdl=chained, num_warps=8,
        )  # fmt: skip


@triton.jit
def _offer_kernel(
    logits, entries, stride, vocab, segment_max, chunk_max, chunk_sum, num_chunks, offers, first,
    RANK: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, SEGMENT: tl.constexpr, NUM: tl.constexpr,
    SEGMENTS: tl.constexpr, CHUNKS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """The best score of this rank's tokens, the first token that has it, and the mass of all, relative to the best."""
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    best, token, mass, _maxima = best_of_part(
        logits, load_int(entries, i, LOGITS_ROW).to(tl.int64), stride, vocab, i, load_float(entries, i, TEMPERATURE),
        segment_max, chunk_max, chunk_sum, num_chunks, first, SEGMENT, NUM, SEGMENTS, CHUNKS,
    )  # fmt: skip
    column = tl.arange(0, PAD)
    told = tl.where(column == 3 * RANK, best, 0.0)
    told = tl.where(column == 3 * RANK + 1, token, told)
    told = tl.where(column == 3 * RANK + 2, mass, told)
    tl.store(offers + i * WIDTH + column, told, mask=column < WIDTH)


@triton.jit
def best_of_part(
    logits, row, stride, vocab, i, temperature, segment_max, chunk_max, chunk_sum, num_chunks, first,
    SEGMENT: tl.constexpr, NUM: tl.constexpr, SEGMENTS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The best score, NaN if there is a NaN; its token and the mass, 0 if none can be drawn; the segments' maxima."""
    segment = tl.arange(0, SEGMENTS)
    live = segment < num_chunks * NUM
    maxima = tl.load(segment_max + i * num_chunks * NUM + segment, mask=live, other=-float("inf"))
    best = tl.max(maxima, 0)
    has_nan = tl.max((maxima != maxima).to(tl.int32), 0) > 0
    at = tl.minimum(first_place(maxima == best, segment), SEGMENTS - 1) * SEGMENT + tl.arange(0, SEGMENT)
    x = tl.load(logits + row * stride + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
    token = first + first_place(score_of(x, temperature) == best, at)
    mass = tl.sum(_masses(chunk_max, chunk_sum, i, num_chunks, best, CHUNKS).to(tl.float64), 0)
    is_empty = has_nan | (best == -float("inf"))
    token = tl.where(is_empty, 0, token).to(tl.float32)
    mass = tl.where(is_empty, 0.0, mass.to(tl.float32))
    return tl.where(has_nan, float("nan"), best), token, mass, maxima


@triton.jit
def _choose_kernel(
    logits, entries, stride, vocab, chunk_max, chunk_sum, num_chunks, offers, shares, first,
    RANK: tl.constexpr, RANKS: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """The token on the rank that has it, and 0 on others. If there is none, -1 on the first rank."""
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    told = offers + i * WIDTH
    rank, bests, best, is_broken = load_bests(told, RANKS, PAD, 3)
    share = share_of_all(
        logits, load_int(entries, i, LOGITS_ROW).to(tl.int64), stride, vocab, i, load_float(entries, i, TEMPERATURE),
        uniform(entries, i), told, rank, bests, best, is_broken, chunk_max, chunk_sum, num_chunks, first,
        RANK, RANKS, 3, CHUNK, CHUNKS,
    )  # fmt: skip
    tl.store(shares + i, share.to(tl.float32))


@triton.jit
def load_bests(told, RANKS: tl.constexpr, PAD: tl.constexpr, EACH: tl.constexpr):
    """Of an entry, told by all ranks in EACH numbers: their numbers, their best scores, the best of all, and whether
    nothing can be drawn."""
    rank = tl.arange(0, PAD)
    bests = tl.load(told + EACH * rank, mask=rank < RANKS, other=-float("inf"))
    best = tl.max(bests, 0)
    has_nan = tl.max((bests != bests).to(tl.int32), 0) > 0
    return rank, bests, best, (has_nan | (best == -float("inf"))).to(tl.int32)


@triton.jit
def share_of_all(
    logits, row, stride, vocab, i, temperature, u, told, rank, bests, best, is_broken,
    chunk_max, chunk_sum, num_chunks, first,
    RANK: tl.constexpr, RANKS: tl.constexpr, EACH: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """A draw from all tokens, or the best one: this rank's share of it."""
    share = tl.full([], 0, tl.int32)
    if is_broken != 0:
        share = tl.full([], -1 if RANK == 0 else 0, tl.int32)
    elif temperature == 0.0:
        if first_place(bests == best, rank) == RANK:
            share = tl.load(told + EACH * RANK + 1).to(tl.int32)
    else:
        mass = tl.load(told + EACH * rank + 2, mask=rank < RANKS, other=0.0)
        mass = tl.where(bests == best, mass, mass * tl.exp(bests - best))
        mass = tl.where(bests == -float("inf"), 0.0, mass)
        target = u * tl.sum(mass.to(tl.float64), 0)
        place, before = pick(mass, target, rank)
        if place == RANK:
            chunk_mass = _masses(chunk_max, chunk_sum, i, num_chunks, best, CHUNKS)
            chunk, chunks_before = pick(chunk_mass, target - before, tl.arange(0, CHUNKS))
            at = chunk * CHUNK + tl.arange(0, CHUNK)
            x = tl.load(logits + row * stride + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
            away, _key = distance(score_of(x, temperature), best)
            token, _before = pick(tl.exp(-away), target - before - chunks_before, tl.arange(0, CHUNK))
            share = first + chunk * CHUNK + token
    return share


@triton.jit
def _masses(chunk_max, chunk_sum, i, num_chunks, best, CHUNKS: tl.constexpr):
    """Of this rank's chunks, relative to a best score, which may be another rank's."""
    chunk = tl.arange(0, CHUNKS)
    live = chunk < num_chunks
    top = tl.load(chunk_max + i * num_chunks + chunk, mask=live, other=-float("inf"))
    sums = tl.load(chunk_sum + i * num_chunks + chunk, mask=live, other=0.0)
    mass = tl.where(top == best, sums, sums * tl.exp(top - best))
    return tl.where(top == -float("inf"), 0.0, mass)
