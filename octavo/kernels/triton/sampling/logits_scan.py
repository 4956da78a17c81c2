"""One pass over the logits: the maxima and sums of a row that sampling and logprobs start from.

    row [V] ──cut──> chunks of 2048 ──> chunk_max, chunk_sum = sum of exp(score - chunk_max)
                     segments of 128 ──> segment_max; NaN if the segment holds one

A score is a logit over its temperature. Reading the logits is the cost, and only this pass always reads all of them:
segment maxima lead to the best tokens, and chunk sums to a draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda import sizes


@dataclass(frozen=True, slots=True, eq=False)
class LogitsScan:
    """The results, [N, ...] float32 on the device."""

    segment_max: torch.Tensor
    chunk_max: torch.Tensor
    chunk_sum: torch.Tensor
    chunk_better: torch.Tensor  # int32, the number of the chunk's tokens that beat a given one

    @classmethod
    def allocate(cls, max_rows: int, vocab_size: int, device: torch.device) -> LogitsScan:
        shapes = sizes.logits_scan(max_rows, vocab_size)
        better = torch.empty(shapes.pop("chunk_better"), dtype=torch.int32, device=device)
        scores = {name: torch.empty(shape, dtype=torch.float32, device=device) for name, shape in shapes.items()}
        return cls(**scores, chunk_better=better)


@triton.jit
def score_of(x, temperature):
    """x / temperature, rounded as IEEE division; x itself for temperatures 0 and 1."""
    y = x
    if (temperature != 0.0) & (temperature != 1.0):
        y = tl.div_rn(x, tl.zeros_like(x) + temperature)
        y = tl.where(tl.abs(x) == float("inf"), x, y)
    return y


@triton.jit
def scan_chunk(x, temperature, segment_max, chunk_max, chunk_sum, SEGMENTS: tl.constexpr):
    """Scan x [SEGMENTS, SEGMENT] float32, padded with -inf, and store the results at the three pointers."""
    scores = score_of(x, temperature)
    best_of = tl.max(scores, 1)
    has_nan = tl.max((x != x).to(tl.int32), 1) > 0
    tl.store(segment_max + tl.arange(0, SEGMENTS), tl.where(has_nan, float("nan"), best_of))
    best = tl.max(best_of, 0)
    tl.store(chunk_max, best)
    # the best weighs 1, even if it is infinite
    tl.store(chunk_sum, tl.sum(tl.sum(tl.where(scores == best, 1.0, tl.exp(scores - best)), 1), 0))
