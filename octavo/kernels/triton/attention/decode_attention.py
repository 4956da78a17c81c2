"""Attention of one new token a sequence, through block tables: the decode half of `paged_attention`.

Reading keys and values is all the cost, so each is read once, by whoever holds all query heads that share
it, and the reads of a ragged batch are cut into equal items (see `plan.py`):

    items x kv heads ──fetched by──> persistent programs, one after another as they get done
        program: an item's boxes, four at a time ──> online softmax over [query heads of the kv head, D]
            sequence of one item:   the result
            of several:             partial (max, sum, weighted values), float32
    sequences x query heads ───────> join: each sequence's partials, in order

Fused, the kernel takes packed q, k, v as the projection made them: it norms and rotates its query, and the
item that holds the new token writes its key and value to the cache. No other item reads them there.

Keys come through the tensor copy engine in boxes of 16 tokens, a block or a part of one; the last, partly filled box by
ordinary masked loads, since what lies in free slots may be anything. Two warps a program: reductions across more cost
more than they bring, and four programs a multiprocessor keep enough reads in flight.

Split-KV decoding is from Flash-Decoding (Dao et al., 2023); equal work items from FlashInfer (Ye et al., 2025).

Shape letters: S sequences, Q query heads, K kv heads, D head dimension, G = Q / K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.ops import AttentionLayer
from octavo.kernels.triton.attention.kv_pool import BOX_TOKENS, LayerPool, padded_dim
from octavo.kernels.triton.attention.plan import MAX_PARTITIONS, AttentionPlan
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform, norm_and_rotate
from octavo.kernels.triton.chain import prefetch_to_l2, wait_for_previous

NUM_WARPS = 2
PROGRAMS_PER_MULTIPROCESSOR = 4
JOIN_PARTS = 4  # partial results a turn: most sequences have no more
LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True, eq=False)
class DecodeWorkspace:
    """Partial results on their way to the join; layers share it, since they run one after another."""

    values: torch.Tensor  # max items of [Q, D] float32, flat
    max_sum: torch.Tensor  # max items of [Q, 2] float32, flat
    counter: torch.Tensor  # [1] int32: work fetched; zero between launches

    @classmethod
    def allocate(cls, max_num_seqs: int, layers: Sequence[AttentionLayer], device: torch.device) -> DecodeWorkspace:
        max_items = max_num_seqs * MAX_PARTITIONS
        heads = max((layer.num_heads for layer in layers), default=0)
        width = max((layer.num_heads * layer.head_dim for layer in layers), default=0)
        return cls(
            torch.empty(max_items * width, dtype=torch.float32, device=device),
            torch.empty(max_items * heads * 2, dtype=torch.float32, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
        )


def decode_attention(
    q: torch.Tensor,
    out: torch.Tensor,
    layer: AttentionLayer,
    pool: LayerPool,
    plan: AttentionPlan,
    workspace: DecodeWorkspace,
    *,
    query_start_loc: torch.Tensor,
    block_table: torch.Tensor,
    num_multiprocessors: int,
    transform: HeadTransform | None = None,
    chained: bool = False,
) -> None:
    """Write the rows of `out` [T, Q * D] that belong to sequences with one new token.

    Without `transform`, q is [T, Q * D] and the cache is up to date. With it, q is [T, (Q + 2K) * D] straight from
    the projection, and the cache receives the new keys and values. `chained`: the previous kernel made q, and
    the plan was finished before that one.
    """
    group = layer.num_heads // layer.num_kv_heads
    dim_pad = padded_dim(layer.head_dim)
    parts = transform if transform is not None else HeadTransform.none(q)
    _decode_kernel[(num_multiprocessors * PROGRAMS_PER_MULTIPROCESSOR,)](
        q, out, pool.data, pool.rows, pool.layer_row, block_table,
        plan.totals, plan.items, workspace.counter, workspace.values, workspace.max_sum,
        parts.q_norm, parts.k_norm, parts.cos, parts.sin,
        layer.scale * LOG2_E, layer.softcap or 0.0, parts.eps,
        q.stride(0), out.stride(0), block_table.stride(0), pool.block_stride, pool.value_offset,
        KV_HEADS=layer.num_kv_heads, GROUP=group, ROWS=max(16, triton.next_power_of_2(group)),
        D=layer.head_dim, D_PAD=dim_pad, ROTARY=parts.rotary_dim, HAS_NORM=parts.has_norm,
        BLOCK_SIZE=pool.block_size, BLOCK_ROWS=pool.block_stride // layer.head_dim, BOX=BOX_TOKENS,
        SOFTCAP=layer.softcap is not None, FUSED=transform is not None,
        CHAINED=chained, launch_pdl=chained, num_warps=NUM_WARPS, num_stages=2,
    )  # fmt: skip
    join_parts(out, layer, plan, workspace, query_start_loc, chained=chained)


def join_parts(
    out: torch.Tensor,
    layer: AttentionLayer,
    plan: AttentionPlan,
    workspace: DecodeWorkspace,
    query_start_loc: torch.Tensor,
    *,
    chained: bool,
) -> None:
    """The results of sequences of several items, from their partial ones; ends what attended to the items."""
    _join_kernel[(len(query_start_loc) - 1, layer.num_heads)](
        out, plan.item_ranges, query_start_loc, workspace.counter, workspace.values, workspace.max_sum, out.stride(0),
        Q_HEADS=layer.num_heads, D=layer.head_dim, D_PAD=padded_dim(layer.head_dim), PARTS=JOIN_PARTS,
        CHAINED=chained, launch_pdl=chained, num_warps=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride"])
def _decode_kernel(
    q_ptr, out_ptr, pool, pool_rows, layer_row, block_table,
    totals, items, counter, part_values, part_max_sum,
    q_norm, k_norm, cos, sin,
    scale_log2, softcap, eps,
    q_stride, out_stride, table_stride, block_stride, value_offset,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    D: tl.constexpr, D_PAD: tl.constexpr, ROTARY: tl.constexpr, HAS_NORM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BOX: tl.constexpr, SOFTCAP: tl.constexpr,
    FUSED: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    g = tl.arange(0, ROWS)
    d = tl.arange(0, D_PAD)
    num_work = tl.load(totals) * KV_HEADS
    if CHAINED:  # noqa: SIM102 (a compile-time condition around a run-time one)
        if tl.program_id(0) < num_work:
            _prefetch(
                items, tl.program_id(0), block_table, pool, table_stride, block_stride, value_offset,
                KV_HEADS, D, BLOCK_SIZE,
            )  # fmt: skip
    wait_for_previous(CHAINED)
    work = tl.atomic_add(counter, 1, sem="relaxed")
    while work < num_work:
        next_work = tl.atomic_add(counter, 1, sem="relaxed")  # on its way while this one is computed
        item = work // KV_HEADS
        kv_head = work % KV_HEADS
        record = items + item * 8
        table = block_table + tl.load(record).to(tl.int64) * table_stride
        token = tl.load(record + 1).to(tl.int64)
        position = tl.load(record + 2)
        begin = tl.load(record + 3)
        end = tl.load(record + 4)
        num_items = tl.load(record + 5)
        head_pool = pool + kv_head * BLOCK_SIZE * D

        q_mask = (g < GROUP)[:, None] & (d < D)[None, :]
        q_row = q_ptr + token * q_stride
        q_off = (kv_head * GROUP + g)[:, None] * D
        m = tl.full([ROWS], -float("inf"), tl.float32)
        l = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, D_PAD], tl.float32)
        if FUSED:
            q = norm_and_rotate(
                q_row, q_off, q_norm, cos, sin, position, eps, d[None, :], q_mask, D, ROTARY, HAS_NORM
            ).to(q_ptr.dtype.element_ty)
            if end == position + 1:
                # the new token itself: from registers to the cache, and into the softmax
                k_off = (KV_HEADS * GROUP + kv_head) * D
                d_row = d[None, :]
                k_new = norm_and_rotate(
                    q_row, k_off, k_norm, cos, sin, position, eps, d_row, d_row < D, D, ROTARY, HAS_NORM
                ).to(pool.dtype.element_ty)
                v_new = tl.load(q_row + k_off + KV_HEADS * D + d_row, mask=d_row < D, other=0.0)
                block = tl.load(table + position // BLOCK_SIZE).to(tl.int64)
                cell = head_pool + block * block_stride + (position % BLOCK_SIZE) * D + d_row
                tl.store(cell, k_new, mask=d_row < D)
                tl.store(cell + value_offset, v_new, mask=d_row < D)
                m = cap_scores(tl.sum(q.to(tl.float32) * k_new.to(tl.float32), 1) * scale_log2, softcap, SOFTCAP)
                l = tl.full([ROWS], 1.0, tl.float32)
                acc += v_new.to(tl.float32)
                end -= 1
        else:
            q = tl.load(q_row + q_off + d[None, :], mask=q_mask, other=0.0)

        full_end = end // BOX * BOX
        m, l, acc = _whole_boxes(
            q, m, l, acc, begin, full_end, table, pool_rows, layer_row + kv_head * BLOCK_SIZE, scale_log2, softcap,
            KV_HEADS * BLOCK_SIZE, BLOCK_SIZE, BLOCK_ROWS, BOX, SOFTCAP,
        )  # fmt: skip
        if end > full_end:
            m, l, acc = _last_box(
                q, m, l, acc, begin, full_end, end, table, head_pool, block_stride, value_offset, scale_log2, softcap,
                D, D_PAD, BLOCK_SIZE, BOX, SOFTCAP,
            )  # fmt: skip

        if num_items == 1:
            to = out_ptr + token * out_stride + q_off + d[None, :]
            tl.store(to, (acc / l[:, None]).to(out_ptr.dtype.element_ty), mask=q_mask)
        else:
            head = tl.load(record + 6).to(tl.int64) * (KV_HEADS * GROUP) + kv_head * GROUP + g
            tl.store(part_values + head[:, None] * D + d[None, :], acc, mask=q_mask)
            tl.store(part_max_sum + head * 2, m, mask=g < GROUP)
            tl.store(part_max_sum + head * 2 + 1, l, mask=g < GROUP)
        work = next_work


@triton.jit
def _whole_boxes(
    q, m, l, acc, begin, end, table, pool_rows, row, scale_log2, softcap,
    VALUE_ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BOX: tl.constexpr,
    SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Fold the boxes that end by `end` into the softmax, four a turn. Past the last, it is read again and masked."""
    t = tl.arange(0, BOX)
    last = tl.maximum(end - BOX, 0)
    for start in range(begin // BOX * BOX, end, BOX * 4):
        row0 = _row_of(table, start, BLOCK_SIZE, BLOCK_ROWS) + row
        row1 = _row_of(table, tl.minimum(start + BOX, last), BLOCK_SIZE, BLOCK_ROWS) + row
        row2 = _row_of(table, tl.minimum(start + 2 * BOX, last), BLOCK_SIZE, BLOCK_ROWS) + row
        row3 = _row_of(table, tl.minimum(start + 3 * BOX, last), BLOCK_SIZE, BLOCK_ROWS) + row
        k0 = pool_rows.load([row0, 0])
        k1 = pool_rows.load([row1, 0])
        k2 = pool_rows.load([row2, 0])
        k3 = pool_rows.load([row3, 0])
        v0 = pool_rows.load([row0 + VALUE_ROWS, 0])
        v1 = pool_rows.load([row1 + VALUE_ROWS, 0])
        v2 = pool_rows.load([row2 + VALUE_ROWS, 0])
        v3 = pool_rows.load([row3 + VALUE_ROWS, 0])
        s0 = _score_box(q, k0, start + t, begin, end, scale_log2, softcap, SOFTCAP)
        s1 = _score_box(q, k1, start + BOX + t, begin, end, scale_log2, softcap, SOFTCAP)
        s2 = _score_box(q, k2, start + 2 * BOX + t, begin, end, scale_log2, softcap, SOFTCAP)
        s3 = _score_box(q, k3, start + 3 * BOX + t, begin, end, scale_log2, softcap, SOFTCAP)
        m_new = tl.maximum(m, tl.max(tl.maximum(tl.maximum(s0, s1), tl.maximum(s2, s3)), 1))
        alpha = tl.exp2(m - m_new)
        p0 = tl.exp2(s0 - m_new[:, None])
        p1 = tl.exp2(s1 - m_new[:, None])
        p2 = tl.exp2(s2 - m_new[:, None])
        p3 = tl.exp2(s3 - m_new[:, None])
        l = l * alpha + tl.sum((p0 + p1) + (p2 + p3), 1)
        acc = tl.dot(p0.to(v0.dtype), v0, acc * alpha[:, None], input_precision="ieee")
        acc = tl.dot(p1.to(v0.dtype), v1, acc, input_precision="ieee")
        acc = tl.dot(p2.to(v0.dtype), v2, acc, input_precision="ieee")
        acc = tl.dot(p3.to(v0.dtype), v3, acc, input_precision="ieee")
        m = m_new
    return m, l, acc


@triton.jit
def _row_of(table, t, BLOCK_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """The pool's row of token t, for the first head of the first layer."""
    return tl.load(table + t // BLOCK_SIZE) * BLOCK_ROWS + t % BLOCK_SIZE


@triton.jit
def _last_box(
    q, m, l, acc, begin, start, end, table, head_pool, block_stride, value_offset, scale_log2, softcap,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, BOX: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Fold the partly filled box that begins at `start` into the softmax."""
    t = tl.arange(0, BOX)
    d = tl.arange(0, D_PAD)
    block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
    cell = head_pool + block * block_stride + (start % BLOCK_SIZE + t)[:, None] * D + d[None, :]
    mask = (start + t < end)[:, None] & (d < D)[None, :]
    k = tl.load(cell, mask=mask, other=0.0)
    v = tl.load(cell + value_offset, mask=mask, other=0.0)
    scores = _score_box(q, k, start + t, begin, end, scale_log2, softcap, SOFTCAP)
    m_new = tl.maximum(m, tl.max(scores, 1))
    p = tl.exp2(scores - m_new[:, None])
    alpha = tl.exp2(m - m_new)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")
    return m_new, l * alpha + tl.sum(p, 1), acc


@triton.jit
def _score_box(q, k, t, begin, end, scale_log2, softcap, SOFTCAP: tl.constexpr):
    scores = cap_scores(tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2, softcap, SOFTCAP)
    return tl.where(((t >= begin) & (t < end))[None, :], scores, -float("inf"))


@triton.jit
def cap_scores(scores, softcap, SOFTCAP: tl.constexpr):
    """c * tanh(score / c), where scores, before and after, are times log2(e): they feed exp2."""
    if SOFTCAP:
        c = softcap * 1.4426950408889634
        e = tl.exp2(-2.885390081777927 * tl.abs(scores / c))
        magnitude = (1 - e) / (1 + e) * c
        scores = tl.where(scores < 0, -magnitude, magnitude)
    return scores


@triton.jit
def _join_kernel(
    out_ptr, item_ranges, query_start_loc, counter, part_values, part_max_sum, out_stride,
    Q_HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, PARTS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One program a sequence and query head."""
    s = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(item_ranges + s * 2).to(tl.int64)
    num_items = tl.load(item_ranges + s * 2 + 1)
    token = tl.load(query_start_loc + s).to(tl.int64)
    wait_for_previous(CHAINED)
    if (s == 0) & (head == 0):
        tl.store(counter, 0)
    if num_items > 1:
        part = tl.arange(0, PARTS)
        d = tl.arange(0, D_PAD)
        m = tl.full([], -float("inf"), tl.float32)
        l = tl.full([], 0.0, tl.float32)
        acc = tl.zeros([D_PAD], tl.float32)
        for start in range(0, num_items, PARTS):
            live = start + part < num_items
            at = (first + start + part) * Q_HEADS + head
            part_max = tl.load(part_max_sum + at * 2, mask=live, other=-float("inf"))
            part_sum = tl.load(part_max_sum + at * 2 + 1, mask=live, other=0.0)
            mask = live[:, None] & (d < D)[None, :]
            values = tl.load(part_values + at[:, None] * D + d[None, :], mask=mask, other=0.0)
            m_new = tl.maximum(m, tl.max(part_max, 0))
            alpha = tl.exp2(m - m_new)
            weight = tl.exp2(part_max - m_new)
            acc = acc * alpha + tl.sum(values * weight[:, None], 0)
            l = l * alpha + tl.sum(part_sum * weight, 0)
            m = m_new
        tl.store(out_ptr + token * out_stride + head * D + d, (acc / l).to(out_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def _prefetch(
    items, work, block_table, pool, table_stride, block_stride, value_offset,
    KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Ask L2 for an item's keys and values, 64 elements at a time, while the projection is still at work."""
    record = items + work // KV_HEADS * 8
    table = block_table + tl.load(record).to(tl.int64) * table_stride
    end = tl.load(record + 4)
    for start in range(tl.load(record + 3), end, 64):
        t = tl.minimum(start + tl.arange(0, 64), end - 1)
        block = tl.load(table + t // BLOCK_SIZE).to(tl.int64)
        cell = pool + (work % KV_HEADS) * BLOCK_SIZE * D + block * block_stride + (t % BLOCK_SIZE) * D
        for line in tl.static_range(0, D, 64):
            prefetch_to_l2(cell + line)
            prefetch_to_l2(cell + value_offset + line)
