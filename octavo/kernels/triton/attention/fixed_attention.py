"""Attention whose result for a token depends on that token's context alone: for a deterministic engine.

Other kernels cut a context by what else is in the step, and compute prompts otherwise than decodes. Here a context is
cut at absolute positions into parts, and each part's softmax is computed alone, in tiles of keys at absolute positions.
Parts are then folded in order, whoever computed them:

    part       0 | 1 | ... | 15 |  16  | ...       16 of 256 tokens, 16 of 1024, 16 of 4096, ...: few for any length
    tile       ROWS rows = some consecutive new tokens of a sequence x the query heads of one kv head
    program    a tile and one part   ──> partial result ──┐ folded in the order of parts
               or a tile and all parts, one after another ┘ the same fold: in registers

Prompts, chunks of them and decodes take the same tiles of ROWS rows, however many rows are used. A key that a row does
not see adds exactly nothing to it, so it does not matter what other rows of its tile see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.sizes import FIXED_PART_ROWS
from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.triton.attention.codes import loaded, unit
from octavo.kernels.triton.attention.memory import LayerPool, padded_dim
from octavo.kernels.triton.attention.scores import LOG2_E, cap_scores, finite, sum_with_sink
from octavo.kernels.triton.chain import wait_for_previous

ROWS = 64
MOST_PROGRAMS = 512  # of a kv head, if there are not more tiles: most of them find that their part has no tokens
_PART = tl.constexpr(256)
_RUN = tl.constexpr(16)  # parts of one length
_LEVELS = tl.constexpr(6)  # lengths; the last one is never exceeded in practice, and takes any number of parts


@dataclass(frozen=True, slots=True, eq=False)
class PartialResults:
    """Float32, flat: [part, kv head, row, dim] and [part, kv head, row, 2]. Layers share it."""

    values: torch.Tensor
    max_sum: torch.Tensor


def num_parts(length: int) -> int:
    """The parts of a context of this many tokens."""
    begin, part = 0, 0
    while begin < length:
        begin += int(_PART) << 2 * min(part // int(_RUN), int(_LEVELS) - 1)
        part += 1
    return part


def fixed_attention(
    q: torch.Tensor,
    out: torch.Tensor,
    layer: AttentionLayer,
    pool: LayerPool,
    partial: PartialResults,
    step: DeviceStep,
    *,
    most_parts: int,
    chained: bool = False,
) -> None:
    """Write all rows of `out` [T, Q * D] that belong to a sequence. q [T, Q * D]; the cache is up to date. most_parts:
    of the longest context that the engine allows."""
    group, dim_pad = layer.num_heads // layer.num_kv_heads, padded_dim(layer.head_dim)
    assert group <= ROWS, f"{group} query heads share a kv head; {ROWS} may"
    num_seqs, queries = len(step.seq_lens), ROWS // group
    is_plain = not step.kind.has_chunks and step.kind.decode_threshold == 1  # one new token each
    num_tiles = num_seqs if is_plain else len(step.positions) // queries + num_seqs
    part_rows = group if is_plain else ROWS
    shares = max(1, min(FIXED_PART_ROWS // (num_tiles * part_rows), MOST_PROGRAMS // num_tiles, most_parts))
    table = step.block_tables[layer.group]
    where = (step.rows, step.query_start_loc, step.seq_lens, num_seqs)
    shape = {
        "GROUP": group, "QUERIES": queries, "D": layer.head_dim, "D_PAD": dim_pad, "WINDOW": layer.window or 0,
        "IS_PLAIN": is_plain, "HAS_SINKS": pool.has_sinks, "CHAINED": chained, "launch_pdl": chained,
    }  # fmt: skip
    _attend_kernel[(layer.num_kv_heads, num_tiles, shares)](
        q, out, pool.data, table, *where, partial.values, partial.max_sum, pool.scales, pool.sinks,
        layer.scale * LOG2_E, layer.softcap or 0.0,
        q.stride(0), out.stride(0), table.stride(0), pool.block_stride, pool.value_offset, part_rows, shares,
        BLOCK_SIZE=pool.block_size, KEYS=min(64, (16 << 10) // (dim_pad * q.element_size())), ROWS=ROWS,
        SOFTCAP=layer.softcap is not None, **pool.codes, **shape, num_warps=4, num_stages=2,
    )  # fmt: skip
    if shares > 1:
        _fold_kernel[(layer.num_kv_heads, num_tiles)](
            out, *where, partial.values, partial.max_sum, pool.sinks, out.stride(0), part_rows, shares,
            ROWS=triton.next_power_of_2(part_rows), **shape, num_warps=4,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_seqs", "table_stride", "part_rows", "shares"])
def _attend_kernel(
    q_ptr, out_ptr, pool, block_table, rows, query_start_loc, seq_lens, num_seqs, part_values, part_max_sum,
    scales, sinks, scale_log2, softcap, q_stride, out_stride, table_stride, block_stride, value_offset, part_rows,
    shares,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, WINDOW: tl.constexpr,
    IS_PLAIN: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr, SOFTCAP: tl.constexpr,
    HAS_CODES: tl.constexpr, IS_FLOAT: tl.constexpr, HAS_SINKS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    share = tl.program_id(2)
    wait_for_previous(CHAINED)
    s, token, first_position, queries = tile_of_step(
        tl.program_id(1), query_start_loc, seq_lens, num_seqs, QUERIES, IS_PLAIN
    )  # fmt: skip
    if queries <= 0:
        return
    end = first_position + queries
    begin = tl.maximum(first_position - WINDOW + 1, 0) if WINDOW else 0
    first_part = _part_of(begin)
    parts = _part_of(end - 1) + 1 - first_part
    is_cut = (parts > 1) & (parts <= shares)
    if share >= tl.where(is_cut, parts, 1):
        return

    r = tl.arange(0, ROWS)
    d = tl.arange(0, D_PAD)
    position = first_position + r // GROUP
    is_row = r < queries * GROUP
    mask = is_row[:, None] & (d < D)[None, :]
    cell = (token + r // GROUP).to(tl.int64)[:, None], ((kv_head * GROUP + r % GROUP) * D)[:, None] + d[None, :]
    q = tl.load(q_ptr + cell[0] * q_stride + cell[1], mask=mask, other=0.0)
    table = block_table + tl.load(rows + s).to(tl.int64) * table_stride
    head_pool = pool + kv_head * BLOCK_SIZE * D
    scale_log2 *= unit(scales, kv_head, HAS_CODES, IS_FLOAT)
    value_unit = unit(scales, tl.num_programs(0) + kv_head, HAS_CODES, IS_FLOAT)
    m = tl.full([ROWS], -float("inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_PAD], tl.float32)
    first_part += tl.where(is_cut, share, 0)
    for part in range(first_part, first_part + tl.where(is_cut, 1, parts)):
        start = tl.maximum(_first_token(part), begin // KEYS * KEYS)
        part_m, part_l, part_acc = _attend_to(
            q, start, tl.minimum(_first_token(part + 1), end), end, position, table, head_pool, block_stride,
            value_offset, scale_log2, softcap, D, D_PAD, BLOCK_SIZE, KEYS, ROWS, WINDOW, SOFTCAP,
        )  # fmt: skip
        if HAS_CODES:  # before the fold, as parts of other programs are
            part_acc *= value_unit
        m, l, acc = _fold(m, l, acc, part_m, part_l, part_acc)

    if is_cut:
        at = ((tl.program_id(1) * shares + share) * tl.num_programs(0) + kv_head).to(tl.int64) * part_rows + r
        tl.store(part_values + at[:, None] * D + d[None, :], acc, mask=mask)
        tl.store(part_max_sum + at * 2, m, mask=is_row)
        tl.store(part_max_sum + at * 2 + 1, l, mask=is_row)
    else:
        l = sum_with_sink(l, m, sinks, kv_head * GROUP + r % GROUP, is_row, HAS_SINKS)
        to = out_ptr + cell[0] * out_stride + cell[1]
        tl.store(to, (acc / l[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_seqs", "part_rows", "shares"])
def _fold_kernel(
    out_ptr, rows, query_start_loc, seq_lens, num_seqs, part_values, part_max_sum, sinks, out_stride, part_rows,
    shares,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, WINDOW: tl.constexpr,
    IS_PLAIN: tl.constexpr, ROWS: tl.constexpr, HAS_SINKS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Folds the parts of those tiles that were cut."""
    kv_head = tl.program_id(0)
    tile = tl.program_id(1)
    wait_for_previous(CHAINED)
    _s, token, first_position, queries = tile_of_step(tile, query_start_loc, seq_lens, num_seqs, QUERIES, IS_PLAIN)
    if queries <= 0:
        return
    begin = tl.maximum(first_position - WINDOW + 1, 0) if WINDOW else 0
    parts = _part_of(first_position + queries - 1) + 1 - _part_of(begin)
    if (parts == 1) | (parts > shares):
        return
    r = tl.arange(0, ROWS)
    d = tl.arange(0, D_PAD)
    is_row = r < queries * GROUP
    mask = is_row[:, None] & (d < D)[None, :]
    m = tl.full([ROWS], -float("inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_PAD], tl.float32)
    for part in range(parts):
        at = ((tile * shares + part) * tl.num_programs(0) + kv_head).to(tl.int64) * part_rows + r
        part_m = tl.load(part_max_sum + at * 2, mask=is_row, other=-float("inf"))
        part_l = tl.load(part_max_sum + at * 2 + 1, mask=is_row, other=0.0)
        part_acc = tl.load(part_values + at[:, None] * D + d[None, :], mask=mask, other=0.0)
        m, l, acc = _fold(m, l, acc, part_m, part_l, part_acc)
    l = sum_with_sink(l, m, sinks, kv_head * GROUP + r % GROUP, is_row, HAS_SINKS)
    to = out_ptr + (token + r // GROUP).to(tl.int64)[:, None] * out_stride
    to += ((kv_head * GROUP + r % GROUP) * D)[:, None] + d[None, :]
    tl.store(to, (acc / l[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def tile_of_step(tile, query_start_loc, seq_lens, num_seqs, QUERIES: tl.constexpr, IS_PLAIN: tl.constexpr):
    """A tile's sequence, first token in the step and its position, and number of queries, which may be 0 or less.

    The tiles of sequence s begin at query_start_loc[s] // QUERIES + s: a few stay empty, and nothing must be counted.
    """
    s = tile
    first = 0
    if not IS_PLAIN:
        s = 0
        above = num_seqs
        while above - s > 1:  # the last sequence whose tiles begin at or before this one
            middle = (s + above) // 2
            is_before = tl.load(query_start_loc + middle) // QUERIES + middle <= tile
            s = tl.where(is_before, middle, s)
            above = tl.where(is_before, above, middle)
        first = (tile - (tl.load(query_start_loc + s) // QUERIES + s)) * QUERIES
    start = tl.load(query_start_loc + s)
    num_queries = tl.load(query_start_loc + s + 1) - start
    length = tl.load(seq_lens + s)
    queries = tl.where(length > 0, tl.minimum(num_queries - first, QUERIES), 0)
    return s, start + first, length - num_queries + first, queries


@triton.jit
def _first_token(part):
    """Where a part begins."""
    begin = part * _PART
    for level in tl.static_range(1, _LEVELS):
        start = _RUN * _PART * ((1 << 2 * level) - 1) // 3
        begin = tl.where(part >= level * _RUN, start + (part - level * _RUN) * (_PART << 2 * level), begin)
    return begin


@triton.jit
def _part_of(token):
    """The part that holds a token."""
    part = token // _PART
    for level in tl.static_range(1, _LEVELS):
        start = _RUN * _PART * ((1 << 2 * level) - 1) // 3
        part = tl.where(token >= start, level * _RUN + (token - start) // (_PART << 2 * level), part)
    return part


@triton.jit
def _attend_to(
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
def _fold(m, l, acc, part_m, part_l, part_acc):
    """The sums of everything before a part, and the part's, together. Explicit fma, so that no compiler chooses."""
    top = tl.maximum(m, part_m)
    old = tl.exp2(m - finite(top))
    new = tl.exp2(part_m - finite(top))
    zeros = tl.zeros_like(acc)
    acc = tl.fma(part_acc, zeros + new[:, None], acc * old[:, None])
    return top, tl.fma(part_l, new, l * old), acc
