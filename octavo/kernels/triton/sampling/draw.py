"""Draw tokens on the device without sorting the vocabulary: the op `sample`.

Semantics are those of `kernels/reference/sampling.py`, the draw included: the first token in id order whose
cumulative mass exceeds u * (mass kept), u from counter-based Philox. Sums are float32 within a segment or chunk
and float64 across, so a token may differ from the reference where u falls within about 1e-6 of a boundary.

    edit     entries with allowed, banned, biased or penalised tokens: an edited copy of their row
    scan     every row, once: maxima of segments, sums of chunks (`logits_scan.py`)
    draw     one program an entry
               temperature 0     the best segment, then the best token in it
               no filter         the chunk where u falls, then the token in it
               filters           the HEAD segments with the largest maxima hold every token above the largest
                                 maximum left out. If the filters' thresholds lie above that, all is decided
                                 there, by bisection on 8192 scores in registers
    search   entries whose filters keep more than that (a flat distribution): bisection over the whole row

Bisection is on the bits of -score, a non-negative float, whose order is that of integers: exact, ties included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.sampling.logits_scan import CHUNK, SEGMENT, LogitsScan, scan_chunk, score_of

HEAD = 64
#: bits of the largest finite float: distances of what cannot be drawn are past it
FINITE_KEY = 0x7F7FFFFF


@dataclass(frozen=True, slots=True, eq=False)
class DeviceSamplingBatch:
    """The columns of `SamplingBatch` on the device, same names and types; seeds as int64 bits."""

    logits_rows: torch.Tensor
    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    min_p: torch.Tensor
    presence_penalty: torch.Tensor
    frequency_penalty: torch.Tensor
    repetition_penalty: torch.Tensor
    seeds: torch.Tensor
    sample_indices: torch.Tensor
    positions: torch.Tensor
    history: torch.Tensor
    history_offsets: torch.Tensor
    prompt_lens: torch.Tensor
    allowed: torch.Tensor
    allowed_offsets: torch.Tensor
    banned: torch.Tensor
    banned_offsets: torch.Tensor
    bias_ids: torch.Tensor
    bias_values: torch.Tensor
    bias_offsets: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SamplingWorkspace:
    """Buffers between the kernels of one draw."""

    scan: LogitsScan
    head: torch.Tensor  # [N, HEAD] int32: an entry's head segments, in id order
    undecided: torch.Tensor  # [N] int32: 1 if `search` has to decide
    edited: torch.Tensor  # [N, V] float32, rows of entries with edits; one element if there are never any
    counts: torch.Tensor  # [N, V] int32, zero between draws; likewise

    @classmethod
    def allocate(cls, max_entries: int, vocab_size: int, device: torch.device, *, edits: bool) -> SamplingWorkspace:
        edited_shape = (max_entries, vocab_size) if edits else (1, 1)
        return cls(
            LogitsScan.allocate(max_entries, vocab_size, device),
            torch.empty((max_entries, HEAD), dtype=torch.int32, device=device),
            torch.empty(max_entries, dtype=torch.int32, device=device),
            torch.empty(edited_shape, dtype=torch.float32, device=device),
            torch.zeros(edited_shape, dtype=torch.int32, device=device),
        )


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
    """tokens [N] int32 = one draw per entry from logits [M, V], float32, bfloat16 or float16; -1 where a row holds NaN
    or no token is left.

    has_edits, has_filters: whether any entry of the batch may have edits, or top_k, top_p or min_p; False saves
    kernels.
    """
    num_entries, chunks = len(tokens), triton.cdiv(logits.shape[1], CHUNK)
    b, scan = batch, workspace.scan
    source, runs = edit_and_scan(logits, batch, workspace, has_edits=has_edits, chained=chained)
    launch = {"CHAINED": chained, "launch_pdl": chained}
    choice = (b.temperature, b.top_p, b.top_k, b.min_p, b.seeds, b.sample_indices, b.positions)
    _draw_kernel[(num_entries,)](
        *source, *runs, *choice, scan.segment_max, scan.chunk_max, scan.chunk_sum, chunks, workspace.head,
        workspace.undecided, tokens, SEGMENT=SEGMENT, CHUNK=CHUNK, HEAD=HEAD,
        SEGMENTS=triton.next_power_of_2(chunks * (CHUNK // SEGMENT)), CHUNKS=triton.next_power_of_2(chunks),
        EDITS=has_edits, FILTERS=has_filters, FINITE=FINITE_KEY, **launch, num_warps=8,
    )  # fmt: skip
    if has_filters:
        _search_kernel[(num_entries,)](
            *source, *runs, *choice, scan.chunk_max, chunks, workspace.undecided, tokens,
            TILE=8192, CHUNKS=triton.next_power_of_2(chunks), EDITS=has_edits, FINITE=FINITE_KEY, **launch,
            num_warps=16,
        )  # fmt: skip


def edit_and_scan(
    logits: torch.Tensor, batch: DeviceSamplingBatch, workspace: SamplingWorkspace, *, has_edits: bool, chained: bool
) -> tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]:
    """The kernels that come first, for a draw and for who wants to know what it is from. Returns the arguments by which
    the kernels after them find an entry's row."""
    num_entries, vocab_size = len(batch.temperature), logits.shape[1]
    chunks = triton.cdiv(vocab_size, CHUNK)
    b, scan = batch, workspace.scan
    source = (logits, b.logits_rows, logits.stride(0), workspace.edited, workspace.edited.stride(0), vocab_size)
    runs = (b.history_offsets, b.allowed_offsets, b.banned_offsets, b.bias_offsets)
    launch = {"CHAINED": chained, "launch_pdl": chained}
    if has_edits:
        _copy_kernel[(num_entries, chunks)](*source, *runs, TILE=CHUNK, **launch, num_warps=4)
        _edit_kernel[(num_entries,)](
            *source, *runs, b.history, b.prompt_lens, b.allowed, b.banned, b.bias_ids, b.bias_values,
            b.presence_penalty, b.frequency_penalty, b.repetition_penalty, workspace.counts,
            TILE=1024, **launch, num_warps=8,
        )  # fmt: skip
    _scan_kernel[(num_entries, chunks)](
        *source, *runs, b.temperature, scan.segment_max, scan.chunk_max, scan.chunk_sum, chunks,
        SEGMENT=SEGMENT, SEGMENTS=CHUNK // SEGMENT, EDITS=has_edits, **launch, num_warps=4,
    )  # fmt: skip
    return source, runs


@triton.jit
def entry_has_edits(i, history_offsets, allowed_offsets, banned_offsets, bias_offsets):
    num = tl.load(history_offsets + i + 1) - tl.load(history_offsets + i)
    num += tl.load(allowed_offsets + i + 1) - tl.load(allowed_offsets + i)
    num += tl.load(banned_offsets + i + 1) - tl.load(banned_offsets + i)
    num += tl.load(bias_offsets + i + 1) - tl.load(bias_offsets + i)
    return num > 0


@triton.jit
def load_row(logits, row, stride, edited, edited_stride, i, is_edited, at, mask, EDITS: tl.constexpr):
    """Entry i's logits at `at` as float32, from its edited copy if it has one."""
    if EDITS:
        if is_edited:
            x = tl.load(edited + i.to(tl.int64) * edited_stride + at, mask=mask, other=-float("inf"))
        else:
            x = tl.load(logits + row * stride + at, mask=mask, other=-float("inf")).to(tl.float32)
    else:
        x = tl.load(logits + row * stride + at, mask=mask, other=-float("inf")).to(tl.float32)
    return x


@triton.jit
def _copy_kernel(
    logits, logits_rows, stride, edited, edited_stride, vocab,
    history_offsets, allowed_offsets, banned_offsets, bias_offsets, TILE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """The row of an entry with edits, as float32; only its NaNs where just some tokens are allowed."""
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    if entry_has_edits(i, history_offsets, allowed_offsets, banned_offsets, bias_offsets):
        at = tl.program_id(1) * TILE + tl.arange(0, TILE)
        row = tl.load(logits_rows + i).to(tl.int64)
        x = tl.load(logits + row * stride + at, mask=at < vocab, other=0.0).to(tl.float32)
        if tl.load(allowed_offsets + i + 1) > tl.load(allowed_offsets + i):
            x = tl.where(x == x, -float("inf"), x)
        tl.store(edited + i.to(tl.int64) * edited_stride + at, x, mask=at < vocab)


@triton.jit
def _edit_kernel(
    logits, logits_rows, stride, edited, edited_stride, vocab,
    history_offsets, allowed_offsets, banned_offsets, bias_offsets,
    history, prompt_lens, allowed, banned, bias_ids, bias_values, presence, frequency, repetition, counts,
    TILE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One program an entry; a barrier between edits that may touch the same token."""
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    offs = tl.arange(0, TILE)
    source = logits + tl.load(logits_rows + i).to(tl.int64) * stride
    row = edited + i.to(tl.int64) * edited_stride
    end = tl.load(allowed_offsets + i + 1)
    for start in range(tl.load(allowed_offsets + i), end, TILE):
        mask = start + offs < end
        token = tl.load(allowed + start + offs, mask=mask, other=0)
        tl.store(row + token, tl.load(source + token, mask=mask).to(tl.float32), mask=mask)
    tl.debug_barrier()
    end = tl.load(banned_offsets + i + 1)
    for start in range(tl.load(banned_offsets + i), end, TILE):
        mask = start + offs < end
        token = tl.load(banned + start + offs, mask=mask, other=0)
        x = tl.load(source + token, mask=mask, other=0.0).to(tl.float32)
        tl.store(row + token, tl.where(x == x, -float("inf"), x), mask=mask)
    tl.debug_barrier()
    end = tl.load(bias_offsets + i + 1)
    for start in range(tl.load(bias_offsets + i), end, TILE):
        mask = start + offs < end
        token = tl.load(bias_ids + start + offs, mask=mask, other=0)
        x = tl.load(row + token, mask=mask, other=0.0)
        tl.store(row + token, x + tl.load(bias_values + start + offs, mask=mask, other=0.0), mask=mask)
    tl.debug_barrier()
    _penalise(
        i, row, counts + i.to(tl.int64) * edited_stride, history, tl.load(history_offsets + i),
        tl.load(history_offsets + i + 1), tl.load(prompt_lens + i), tl.load(presence + i), tl.load(frequency + i),
        tl.load(repetition + i), TILE,
    )  # fmt: skip


@triton.jit
def _penalise(i, row, counts, history, begin, end, prompt_len, presence, frequency, repetition, TILE: tl.constexpr):
    """Count the history's tokens, then whoever takes a token's count away penalises that token: once each.

    A count is the number of output occurrences, plus SEEN once the token occurs at all.
    """
    SEEN: tl.constexpr = 1 << 30
    offs = tl.arange(0, TILE)
    for start in range(begin, end, TILE):
        mask = start + offs < end
        token = tl.load(history + start + offs, mask=mask, other=0)
        tl.atomic_or(counts + token, SEEN, mask=mask, sem="relaxed")
        is_output = mask & (start + offs - begin >= prompt_len)
        tl.atomic_add(counts + token, 1, mask=is_output, sem="relaxed")
    tl.debug_barrier()
    for start in range(begin, end, TILE):
        mask = start + offs < end
        token = tl.load(history + start + offs, mask=mask, other=0)
        count = tl.atomic_xchg(counts + token, 0, mask=mask, sem="relaxed")
        mine = mask & (count != 0)
        count = count & (SEEN - 1)
        # in float64, rounded once an edit, as the reference does
        x = tl.load(row + token, mask=mine, other=0.0).to(tl.float64)
        x = tl.where(x > 0, x / repetition.to(tl.float64), x * repetition.to(tl.float64)).to(tl.float32)
        lowered = (x.to(tl.float64) - frequency.to(tl.float64) * count) - presence.to(tl.float64)
        tl.store(row + token, tl.where(count > 0, lowered.to(tl.float32), x), mask=mine)


@triton.jit
def _scan_kernel(
    logits, logits_rows, stride, edited, edited_stride, vocab,
    history_offsets, allowed_offsets, banned_offsets, bias_offsets,
    temperature, segment_max, chunk_max, chunk_sum, num_chunks,
    SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, EDITS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    chunk = tl.program_id(1)
    is_edited = entry_has_edits(i, history_offsets, allowed_offsets, banned_offsets, bias_offsets) if EDITS else False
    at = (chunk * SEGMENTS + tl.arange(0, SEGMENTS))[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    row = tl.load(logits_rows + i).to(tl.int64)
    x = load_row(logits, row, stride, edited, edited_stride, i, is_edited, at, at < vocab, EDITS)
    to = i * num_chunks + chunk
    scan_chunk(x, tl.load(temperature + i), segment_max + to * SEGMENTS, chunk_max + to, chunk_sum + to, SEGMENTS)


@triton.jit
def _uniform(seeds, sample_indices, positions, i):
    """u in [0, 1) for entry i, see `kernels/reference/random.py`."""
    position = tl.load(positions + i).to(tl.uint32, bitcast=True)
    index = tl.load(sample_indices + i).to(tl.uint32, bitcast=True)
    zero = position * 0
    a, b, _c, _d = tl.philox(tl.load(seeds + i).to(tl.uint64, bitcast=True), position, index, zero, zero)
    return ((a >> 5).to(tl.float64) * 67108864.0 + (b >> 6).to(tl.float64)) * 1.1102230246251565e-16


@triton.jit
def _first(condition, index):
    """The lowest index where the condition holds; a large number if nowhere."""
    return tl.min(tl.where(condition, index, 0x7FFFFFFF), 0)


@triton.jit
def _pick(mass, target, index):
    """In 1-D order, the first place whose cumulative mass exceeds target (the last with any, should rounding leave
    none), and the mass before it."""
    mass = mass.to(tl.float64)
    cumulative = tl.cumsum(mass, 0)
    place = _first(cumulative > target, index)
    last = tl.max(tl.where(mass > 0, index, -1), 0)
    place = tl.minimum(place, last)
    return place, tl.sum(tl.where(index < place, mass, 0.0), 0)


@triton.jit
def distance(scores, best):
    """best - score, and its bits: 0 for the best, larger for worse, past FINITE for what cannot be drawn."""
    away = tl.where(scores == best, 0.0, best - scores)
    return away, away.to(tl.int32, bitcast=True)


@triton.jit
def _min_p_key(min_p):
    """The largest bits of a distance that min_p keeps."""
    key = tl.full([], 0x7F7FFFFF, tl.int32)
    if min_p > 0.0:
        key = (0.0 - tl.log(min_p.to(tl.float64)).to(tl.float32)).to(tl.int32, bitcast=True)
    return key


@triton.jit
def _draw_kernel(
    logits, logits_rows, stride, edited, edited_stride, vocab,
    history_offsets, allowed_offsets, banned_offsets, bias_offsets,
    temperatures, top_ps, top_ks, min_ps, seeds, sample_indices, positions,
    segment_max, chunk_max, chunk_sum, num_chunks, head, undecided, tokens,
    SEGMENT: tl.constexpr, CHUNK: tl.constexpr, HEAD: tl.constexpr, SEGMENTS: tl.constexpr, CHUNKS: tl.constexpr,
    EDITS: tl.constexpr, FILTERS: tl.constexpr, FINITE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    is_edited = entry_has_edits(i, history_offsets, allowed_offsets, banned_offsets, bias_offsets) if EDITS else False
    row = tl.load(logits_rows + i).to(tl.int64)
    temperature = tl.load(temperatures + i)
    top_p = tl.load(top_ps + i)
    top_k = tl.load(top_ks + i)
    min_p = tl.load(min_ps + i)
    num_segments = num_chunks * (CHUNK // SEGMENT)
    segment = tl.arange(0, SEGMENTS)
    maxima = tl.load(segment_max + i * num_segments + segment, mask=segment < num_segments, other=-float("inf"))
    best = tl.max(maxima, 0)
    has_nan = tl.max((maxima != maxima).to(tl.int32), 0) > 0
    tl.store(undecided + i, 0)
    if has_nan | (best == -float("inf")):
        tl.store(tokens + i, -1)
    elif temperature == 0.0:
        first = _first(maxima == best, segment)
        at = first * SEGMENT + tl.arange(0, SEGMENT)
        x = load_row(logits, row, stride, edited, edited_stride, i, is_edited, at, at < vocab, EDITS)
        tl.store(tokens + i, _first(x == best, at))
    else:
        chunk = tl.arange(0, CHUNKS)
        live = chunk < num_chunks
        top = tl.load(chunk_max + i * num_chunks + chunk, mask=live, other=-float("inf"))
        sums = tl.load(chunk_sum + i * num_chunks + chunk, mask=live, other=0.0)
        mass = tl.where(top == best, sums, sums * tl.exp(top - best))
        mass = tl.where(top == -float("inf"), 0.0, mass)
        u = _uniform(seeds, sample_indices, positions, i)
        is_filtered = (top_p < 1.0) | ((top_k > 0) & (top_k < vocab)) | (min_p > 0.0)
        if FILTERS & is_filtered:
            token = _draw_from_head(
                logits, row, stride, edited, edited_stride, i, is_edited, vocab, temperature, best, maxima,
                tl.sum(mass.to(tl.float64), 0), top_p, top_k, min_p, u, head,
                SEGMENT, HEAD, SEGMENTS, EDITS, FINITE,
            )  # fmt: skip
            tl.store(tokens + i, token)
            tl.store(undecided + i, (token < 0).to(tl.int32))
        else:
            target = u * tl.sum(mass.to(tl.float64), 0)
            place, before = _pick(mass, target, chunk)
            at = place * CHUNK + tl.arange(0, CHUNK)
            x = load_row(logits, row, stride, edited, edited_stride, i, is_edited, at, at < vocab, EDITS)
            away, _key = distance(score_of(x, temperature), best)
            token, _before = _pick(tl.exp(-away), target - before, tl.arange(0, CHUNK))
            tl.store(tokens + i, place * CHUNK + token)


@triton.jit
def _draw_from_head(
    logits, row, stride, edited, edited_stride, i, is_edited, vocab, temperature, best, maxima,
    total, top_p, top_k, min_p, u, head,
    SEGMENT: tl.constexpr, HEAD: tl.constexpr, SEGMENTS: tl.constexpr, EDITS: tl.constexpr, FINITE: tl.constexpr,
):  # fmt: skip
    """The token, or -1 if the head does not hold all that the filters keep."""
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

    limit = _min_p_key(min_p)
    if (top_k > 0) & (top_k < vocab):
        one = tl.full([HEAD, SEGMENT], 1.0, tl.float32)
        limit = tl.minimum(limit, _pivot_in(key, one, top_k.to(tl.float64), FINITE))
    complete = (limit < known) | (known > FINITE)
    mass = tl.where(key <= limit, mass, 0.0)
    kept = tl.sum(tl.sum(mass, 1).to(tl.float64), 0)
    if (limit == FINITE) & (known <= FINITE):
        # top_p alone: its share is of the whole row
        kept = total
        complete = tl.full([], 1, tl.int1)
    if top_p < 1.0:
        goal = tl.maximum(top_p.to(tl.float64) * kept, 1e-300)
        low = _pivot_in(key, mass, goal, limit)
        complete = complete & ((low < known) | (known > FINITE))
        above = tl.sum(tl.sum(tl.where(key < low, mass, 0.0), 1).to(tl.float64), 0)
        tied = (key == low) & (mass > 0)
        weight = tl.exp(-low.to(tl.float32, bitcast=True)).to(tl.float64)
        rank = tl.cumsum(tied.to(tl.int32), 1) - 1
        in_row = tl.sum(tied.to(tl.int32), 1)
        rank += (tl.cumsum(in_row, 0) - in_row)[:, None]
        stays = (key < low) | (tied & (above + rank.to(tl.float64) * weight < goal))
        mass = tl.where(stays, mass, 0.0)

    in_segment = tl.sum(mass, 1)
    target = u * tl.sum(in_segment.to(tl.float64), 0)
    place, before = _pick(in_segment, target, nth)
    here = tl.sum(tl.where(nth[:, None] == place, mass, 0.0), 0)
    offset, _before = _pick(here, target - before, tl.arange(0, SEGMENT))
    token = tl.sum(tl.where(nth == place, chosen, 0), 0) * SEGMENT + offset
    return tl.where(complete, token, -1)


@triton.jit
def _pivot_in(key, mass, goal, limit):
    """The largest pivot up to `limit` for which the mass of the keys below it falls short of the goal: with goal k
    and masses of 1, the k-th smallest key."""
    low = tl.full([], 0, tl.int32)
    high = tl.zeros_like(low) + limit
    for _turn in range(31):
        middle = low + (high - low) // 2 + (high - low) % 2
        is_short = tl.sum(tl.sum(tl.where(key < middle, mass, 0.0), 1).to(tl.float64), 0) < goal
        low = tl.where(is_short, middle, low)
        high = tl.where(is_short, high, tl.maximum(middle - 1, low))
    return low


@triton.jit
def _narrow(low, high, step, num_short):
    """The range of pivots left, when the first num_short of three fell short."""
    span = high - low
    new_low = low + tl.minimum(num_short * step, span)
    new_high = tl.where(num_short == 3, high, low + tl.minimum((num_short + 1) * step - 1, span))
    return new_low, tl.maximum(new_high, new_low)


@triton.jit
def _search_kernel(
    logits, logits_rows, stride, edited, edited_stride, vocab,
    history_offsets, allowed_offsets, banned_offsets, bias_offsets,
    temperatures, top_ps, top_ks, min_ps, seeds, sample_indices, positions, chunk_max, num_chunks, undecided, tokens,
    TILE: tl.constexpr, CHUNKS: tl.constexpr, EDITS: tl.constexpr, FINITE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Decide an entry by walking its whole row for every step of every bisection."""
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    if tl.load(undecided + i) != 0:
        is_edited = (
            entry_has_edits(i, history_offsets, allowed_offsets, banned_offsets, bias_offsets) if EDITS else False
        )
        row = tl.load(logits_rows + i).to(tl.int64)
        temperature = tl.load(temperatures + i)
        top_p = tl.load(top_ps + i)
        top_k = tl.load(top_ks + i)
        chunk = tl.arange(0, CHUNKS)
        best = tl.max(tl.load(chunk_max + i * num_chunks + chunk, mask=chunk < num_chunks, other=-float("inf")), 0)
        where = (logits, row, stride, edited, edited_stride, i, is_edited, vocab, temperature, best)
        pivot, num_tied = cut_of_row(where, top_p, top_k, tl.load(min_ps + i), FINITE, TILE, EDITS)
        u = _uniform(seeds, sample_indices, positions, i)
        tl.store(tokens + i, _draw_below(where, pivot, num_tied, u, TILE, EDITS))


@triton.jit
def cut_of_row(where, top_p, top_k, min_p, FINITE: tl.constexpr, TILE: tl.constexpr, EDITS: tl.constexpr):
    """What the filters keep of a row: the tokens with keys below a pivot, and the first so many with the pivot's."""
    limit = _min_p_key(min_p)
    if (top_k > 0) & (top_k < where[7]):
        limit = tl.minimum(limit, _pivot_of_row(where, top_k.to(tl.float64), FINITE, FINITE, True, TILE, EDITS))
    pivot = limit + 1
    num_tied = 0
    if top_p < 1.0:
        kept, above, _above = _mass_below(where, pivot, pivot, pivot, limit, False, TILE, EDITS)
        goal = tl.maximum(top_p.to(tl.float64) * kept, 1e-300)
        pivot = _pivot_of_row(where, goal, limit, limit, False, TILE, EDITS)
        above, _above, _kept = _mass_below(where, pivot, pivot, pivot, limit, False, TILE, EDITS)
        # the tied tokens that stay: as many as start before the goal
        weight = tl.exp(-pivot.to(tl.float32, bitcast=True)).to(tl.float64)
        num_tied = tl.minimum(tl.ceil((goal - above) / weight), 1e9).to(tl.int32)
    return pivot, num_tied


@triton.jit
def _tile_of(where, start, TILE: tl.constexpr, EDITS: tl.constexpr):
    logits, row, stride, edited, edited_stride, i, is_edited, vocab, temperature, best = where
    at = start + tl.arange(0, TILE)
    x = load_row(logits, row, stride, edited, edited_stride, i, is_edited, at, at < vocab, EDITS)
    away, key = distance(score_of(x, temperature), best)
    return tl.exp(-away), key


@triton.jit
def _mass_below(where, p, q, r, limit, COUNT: tl.constexpr, TILE: tl.constexpr, EDITS: tl.constexpr):
    """Mass of the row's tokens with keys up to `limit` and below each of three pivots; their number with COUNT."""
    a = tl.zeros([TILE], tl.float32)
    b = tl.zeros([TILE], tl.float32)
    c = tl.zeros([TILE], tl.float32)
    for start in range(0, where[7], TILE):
        weight, key = _tile_of(where, start, TILE, EDITS)
        if COUNT:
            weight = tl.full([TILE], 1.0, tl.float32)
        weight = tl.where(key <= limit, weight, 0.0)
        a += tl.where(key < p, weight, 0.0)
        b += tl.where(key < q, weight, 0.0)
        c += tl.where(key < r, weight, 0.0)
    return tl.sum(a.to(tl.float64), 0), tl.sum(b.to(tl.float64), 0), tl.sum(c.to(tl.float64), 0)


@triton.jit
def _pivot_of_row(where, goal, high_limit, mass_limit, COUNT: tl.constexpr, TILE: tl.constexpr, EDITS: tl.constexpr):
    """`_pivot_in` over the whole row, where reading it is the cost: three pivots a turn."""
    low = tl.full([], 0, tl.int32)
    high = tl.zeros_like(low) + high_limit
    for _turn in range(17):
        step = (high - low) // 4 + 1
        second = low + tl.minimum(2 * step, high - low)
        third = low + tl.minimum(3 * step, high - low)
        a, b, c = _mass_below(where, low + step, second, third, mass_limit, COUNT, TILE, EDITS)
        low, high = _narrow(
            low, high, step, (a < goal).to(tl.int32) + (b < goal).to(tl.int32) + (c < goal).to(tl.int32)
        )
    return low


@triton.jit
def _draw_below(where, pivot, num_tied, u, TILE: tl.constexpr, EDITS: tl.constexpr):
    """Draw among the tokens with keys below the pivot and the first num_tied with the pivot's."""
    total = tl.full([], 0.0, tl.float64)
    tied_before = tl.full([], 0, tl.int32)
    for start in range(0, where[7], TILE):
        weight, key = _tile_of(where, start, TILE, EDITS)
        rank = tl.cumsum((key == pivot).to(tl.int32), 0) - 1 + tied_before
        stays = (key < pivot) | ((key == pivot) & (rank < num_tied))
        total += tl.sum(tl.where(stays, weight, 0.0), 0).to(tl.float64)
        tied_before += tl.sum((key == pivot).to(tl.int32), 0)
    target = u * total
    token = tl.full([], -1, tl.int32)
    before = tl.full([], 0.0, tl.float64)
    tied_before = tl.full([], 0, tl.int32)
    for start in range(0, where[7], TILE):
        if (before <= target) | (token < 0):
            weight, key = _tile_of(where, start, TILE, EDITS)
            rank = tl.cumsum((key == pivot).to(tl.int32), 0) - 1 + tied_before
            stays = (key < pivot) | ((key == pivot) & (rank < num_tied))
            mass = tl.where(stays, weight, 0.0)
            place, _before = _pick(mass, target - before, tl.arange(0, TILE))
            token = tl.where(place >= 0, start + place, token)
            before += tl.sum(mass, 0).to(tl.float64)
            tied_before += tl.sum((key == pivot).to(tl.int32), 0)
    return token
