"""A part of a context, as a deterministic engine cuts it: where it lies, its softmax, and how parts are folded.

part       0 | 1 | ... | 15 |  16  | ...       16 of 256 tokens, 16 of 1024, 16 of 4096, ...: few for any length
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.attention.codes import loaded
from octavo.kernels.triton.attention.scores import cap_scores, finite

_PART = tl.constexpr(256)
_RUN = tl.constexpr(16)  # parts of one length
_LEVELS = tl.constexpr(6)  # lengths; the last one is never exceeded in practice, and takes any number of parts


def num_parts(length: int) -> int:
    """The parts of a context of this many tokens."""
    begin, part = 0, 0
    while begin < length:
        begin += int(_PART) << 2 * min(part // int(_RUN), int(_LEVELS) - 1)
        part += 1
    return part


@triton.jit
def first_token(part):
    """Where a part begins."""
    begin = part * _PART
    for level in tl.static_range(1, _LEVELS):
        start = _RUN * _PART * ((1 << 2 * level) - 1) // 3
        begin = tl.where(part >= level * _RUN, start + (part - level * _RUN) * (_PART << 2 * level), begin)
    return begin


@triton.jit
def part_of(token):
    """The part that holds a token."""
    part = token // _PART
    for level in tl.static_range(1, _LEVELS):
        start = _RUN * _PART * ((1 << 2 * level) - 1) // 3
        part = tl.where(token >= start, level * _RUN + (token - start) // (_PART << 2 * level), part)
    return part


@triton.jit
def attend_to(
    q, start, stop, end, position, table, head_pool, block_stride, value_offset, scale_log2, softcap,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Softmax over the keys start .. stop-1; `end` is where the tile's last query ends. Always masked: a compiler might
    round an unmasked product otherwise."""
    i = tl.arange(0, KEYS)
    d = tl.arange(0, D_PAD)
    m = tl.full([ROWS], -float("inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_PAD], tl.float32)
    for first in range(start, stop, KEYS):
        t = first + i
        block = tl.load(table + t // BLOCK_SIZE, mask=t < end, other=0).to(tl.int64)
        cell = head_pool + (block * block_stride + (t % BLOCK_SIZE) * D)[:, None] + d[None, :]
        in_cache = (t < end)[:, None] & (d < D)[None, :]
        k = loaded(tl.load(cell, mask=in_cache, other=0.0), q.dtype)
        v = loaded(tl.load(cell + value_offset, mask=in_cache, other=0.0), q.dtype)
        scores = cap_scores(tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2, softcap, SOFTCAP)
        seen = t[None, :] <= position[:, None]
        if WINDOW:
            seen = seen & (t[None, :] > position[:, None] - WINDOW)
        scores = tl.where(seen, scores, -float("inf"))
        top = tl.maximum(m, tl.max(scores, 1))
        p = tl.exp2(scores - finite(top)[:, None])
        alpha = tl.exp2(m - finite(top))
        l = tl.fma(l, alpha, tl.sum(p, 1))
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")
        m = top
    return m, l, acc


@triton.jit
def fold(m, l, acc, part_m, part_l, part_acc):
    """The sums of everything before a part, and the part's, together. Explicit fma, so that no compiler chooses."""
    top = tl.maximum(m, part_m)
    old = tl.exp2(m - finite(top))
    new = tl.exp2(part_m - finite(top))
    zeros = tl.zeros_like(acc)
    acc = tl.fma(part_acc, zeros + new[:, None], acc * old[:, None])
    return top, tl.fma(part_l, new, l * old), acc
