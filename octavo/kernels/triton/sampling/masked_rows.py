"""Masks of tokens on rows of logits, in place: what a grammar does not let follow becomes -inf.

mask     1 1 1 1 0 1 1 1 ...    32 tokens a word; where a tile's words have all bits, nothing of its logits moves
logits   . . . . -inf ...       NaNs stay, so that a broken forward pass fails the draw
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_TILE = 2048


def mask_rows(logits: torch.Tensor, rows: torch.Tensor, masks: torch.Tensor) -> None:
    """logits [M, V]: row rows[i] gets masks[i]; -1 is padding. rows [N] int32; masks [N, words] int32, which have just
    been copied: so it is not launched before what comes before it has ended."""
    vocab_size = logits.shape[1]
    _mask_kernel[(len(rows), triton.cdiv(vocab_size, _TILE))](
        logits, rows, masks, logits.stride(0), vocab_size, masks.shape[1], TILE=_TILE, num_warps=4
    )


@triton.jit
def _mask_kernel(logits, rows, masks, stride, vocab, num_words, TILE: tl.constexpr):
    i = tl.program_id(0)
    row = tl.load(rows + i)
    if row >= 0:
        at = tl.program_id(1) * TILE + tl.arange(0, TILE)
        word = tl.load(masks + i.to(tl.int64) * num_words + at // 32, mask=at < vocab, other=-1)
        is_closed = ((word >> (at % 32)) & 1) == 0
        place = logits + row.to(tl.int64) * stride + at
        x = tl.load(place, mask=is_closed, other=0.0).to(tl.float32)
        tl.store(place, tl.full([TILE], -float("inf"), tl.float32), mask=is_closed & (x == x))
