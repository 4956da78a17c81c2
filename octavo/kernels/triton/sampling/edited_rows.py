"""Each entry's row of logits, edited if needed: the kernels that run before a draw or a report.

edit     entries with allowed, masked, banned, biased or penalised tokens: an edited copy of their row
scan     every row, once: maxima of segments, sums of chunks (`logits_scan.py`)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda import sizes
from octavo.kernels.cuda.sizes import CHUNK, SEGMENT
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.sampling.entries import (
    IS_EDITED,
    LOGITS_ROW,
    TEMPERATURE,
    DeviceSamplingBatch,
    load_float,
    load_int,
    with_constants,
)
from octavo.kernels.triton.sampling.logits_scan import LogitsScan, scan_chunk
from octavo.sampling.columns import WORDS

PROMPT_LEN = tl.constexpr(WORDS["prompt_lens"])
PRESENCE_PENALTY = tl.constexpr(WORDS["presence_penalty"])
FREQUENCY_PENALTY = tl.constexpr(WORDS["frequency_penalty"])
REPETITION_PENALTY = tl.constexpr(WORDS["repetition_penalty"])


@dataclass(frozen=True, slots=True, eq=False)
class SamplingWorkspace:
    """Buffers between the kernels of one draw."""

    scan: LogitsScan
    head: torch.Tensor  # [N, HEAD] int32: an entry's head segments, in id order
    undecided: torch.Tensor  # [N] int32: 1 if `search` has to decide
    edited: torch.Tensor  # [N, V] float32, rows of entries with edits; [1, 1] if there are never any
    counts: torch.Tensor  # the same shape, int32, zero between draws

    @property
    def tensors(self) -> list[torch.Tensor]:
        scan = self.scan
        scores = [scan.segment_max, scan.chunk_max, scan.chunk_sum, scan.chunk_better]
        return [*scores, self.head, self.undecided, self.edited, self.counts]

    @classmethod
    def allocate(cls, max_entries: int, vocab_size: int, device: torch.device, *, edits: bool) -> SamplingWorkspace:
        shapes = sizes.sampling_workspace(max_entries, vocab_size, edits=edits)
        return cls(
            LogitsScan.allocate(max_entries, vocab_size, device),
            torch.empty(shapes["head"], dtype=torch.int32, device=device),
            torch.empty(shapes["undecided"], dtype=torch.int32, device=device),
            torch.empty(shapes["edited"], dtype=torch.float32, device=device),
            torch.zeros(shapes["counts"], dtype=torch.int32, device=device),
        )


def edit_and_scan(
    logits: torch.Tensor, batch: DeviceSamplingBatch, workspace: SamplingWorkspace, *, has_edits: bool, chained: bool
) -> tuple[Any, ...]:
    """The first kernels of a draw and of `processed_logits`. Returns the arguments by which later kernels find an
    entry's row."""
    num_entries, vocab_size = len(batch.entries), logits.shape[1]
    chunks = triton.cdiv(vocab_size, CHUNK)
    runs, scan = batch.runs, workspace.scan
    source = (logits, batch.entries, logits.stride(0), workspace.edited, workspace.edited.stride(0), vocab_size)
    launch = {"CHAINED": chained, "launch_pdl": chained}
    if has_edits:
        _copy_kernel[(num_entries, chunks)](
            *source, runs["allowed_offsets"], runs["mask_offsets"], runs["mask"], TILE=CHUNK, **launch, num_warps=4
        )
        _edit_kernel[(num_entries,)](
            *source, runs["history_offsets"], runs["allowed_offsets"], runs["mask_offsets"], runs["banned_offsets"],
            runs["bias_offsets"], runs["history"], runs["allowed"], runs["mask"], runs["banned"], runs["bias_ids"],
            runs["bias_values"], workspace.counts,
            TILE=1024, **launch, num_warps=8,
        )  # fmt: skip
    _scan_kernel[(num_entries, chunks)](
        *source, scan.segment_max, scan.chunk_max, scan.chunk_sum, chunks,
        SEGMENT=SEGMENT, SEGMENTS=CHUNK // SEGMENT, EDITS=has_edits, **launch, num_warps=4,
    )  # fmt: skip
    return source


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
    logits, entries, stride, edited, edited_stride, vocab, allowed_offsets, mask_offsets, masks,
    TILE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Copy the row of an entry with edits, as float32; only its NaNs if just some tokens are allowed. NaNs also stay
    where the mask allows nothing."""
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    if load_int(entries, i, IS_EDITED) != 0:
        at = tl.program_id(1) * TILE + tl.arange(0, TILE)
        row = load_int(entries, i, LOGITS_ROW).to(tl.int64)
        x = tl.load(logits + row * stride + at, mask=at < vocab, other=0.0).to(tl.float32)
        if tl.load(allowed_offsets + i + 1) > tl.load(allowed_offsets + i):
            x = tl.where(x == x, -float("inf"), x)
        is_open = is_unmasked(masks, mask_offsets, i, at, at < vocab)
        x = tl.where(is_open | (x != x), x, -float("inf"))
        tl.store(edited + i.to(tl.int64) * edited_stride + at, x, mask=at < vocab)


@triton.jit
def is_unmasked(masks, mask_offsets, i, token, within):
    """Whether entry i's mask allows these tokens; without a mask all are."""
    first = tl.load(mask_offsets + i)
    has_mask = tl.load(mask_offsets + i + 1) > first
    word = tl.load(masks + first + token // 32, mask=within & has_mask, other=-1)
    return ((word >> (token % 32)) & 1) != 0


@triton.jit
def _edit_kernel(
    logits, entries, stride, edited, edited_stride, vocab,
    history_offsets, allowed_offsets, mask_offsets, banned_offsets, bias_offsets,
    history, allowed, masks, banned, bias_ids, bias_values, counts,
    TILE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One program per entry, with a barrier between edits that may touch the same token."""
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    offs = tl.arange(0, TILE)
    source = logits + load_int(entries, i, LOGITS_ROW).to(tl.int64) * stride
    row = edited + i.to(tl.int64) * edited_stride
    end = tl.load(allowed_offsets + i + 1)
    for start in range(tl.load(allowed_offsets + i), end, TILE):
        mask = start + offs < end
        token = tl.load(allowed + start + offs, mask=mask, other=0)
        mask = mask & is_unmasked(masks, mask_offsets, i, token, mask)
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
        entries, i, row, counts + i.to(tl.int64) * edited_stride, history, tl.load(history_offsets + i),
        tl.load(history_offsets + i + 1), TILE,
    )  # fmt: skip


@with_constants
def _penalise(entries, i, row, counts, history, begin, end, TILE: tl.constexpr):
    """Count the history's tokens. Then the thread that takes a token's count penalises the token, so that happens once.

    A count is the number of occurrences in the output, plus SEEN if the token occurs at all.
    """
    SEEN: tl.constexpr = 1 << 30
    prompt_len = load_int(entries, i, PROMPT_LEN)
    presence = load_float(entries, i, PRESENCE_PENALTY)
    frequency = load_float(entries, i, FREQUENCY_PENALTY)
    repetition = load_float(entries, i, REPETITION_PENALTY)
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
        # in float64, rounded once per edit, as the reference does
        x = tl.load(row + token, mask=mine, other=0.0).to(tl.float64)
        x = tl.where(x > 0, x / repetition.to(tl.float64), x * repetition.to(tl.float64)).to(tl.float32)
        lowered = (x.to(tl.float64) - frequency.to(tl.float64) * count) - presence.to(tl.float64)
        tl.store(row + token, tl.where(count > 0, lowered.to(tl.float32), x), mask=mine)


@triton.jit
def _scan_kernel(
    logits, entries, stride, edited, edited_stride, vocab,
    segment_max, chunk_max, chunk_sum, num_chunks,
    SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, EDITS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_previous(CHAINED)
    i = tl.program_id(0)
    chunk = tl.program_id(1)
    is_edited = load_int(entries, i, IS_EDITED) != 0 if EDITS else False
    at = (chunk * SEGMENTS + tl.arange(0, SEGMENTS))[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    row = load_int(entries, i, LOGITS_ROW).to(tl.int64)
    x = load_row(logits, row, stride, edited, edited_stride, i, is_edited, at, at < vocab, EDITS)
    to = i * num_chunks + chunk
    temperature = load_float(entries, i, TEMPERATURE)
    scan_chunk(x, temperature, segment_max + to * SEGMENTS, chunk_max + to, chunk_sum + to, SEGMENTS)
