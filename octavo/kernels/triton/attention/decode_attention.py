"""Attention for one or a few new tokens per sequence, through block tables: the decode half of `paged_attention`.

Reading keys and values is all the cost, so each is read once, by a program that has all query heads that share it, and
the reads of a ragged batch are cut into equal items (see `plan.py`):

    items x kv heads ──fetched by──> persistent programs, one after another
        program: an item's boxes, four at a time ──> online softmax over [query heads of the kv head, D]
            sequence with one item:   the result
            with several:             partial (max, sum, weighted values), float32
    sequences x query heads ───────> join: each sequence's partial results, in order

Fused, the kernel takes packed q, k, v straight from the projection: it norms and rotates its query, and the item with
the new token writes that token's key and value to the cache. No other item reads them from there.

For several new tokens (up to `decode_threshold`), a program takes all queries of a kv head, or as many as fit its tile;
each query sees the keys up to its own. Such steps are not fused.

The tensor copy engine loads keys in boxes of 16 tokens, a block or a part of one. The last, partly filled box takes
ordinary masked loads, because free slots may hold anything. A program has two warps: reductions across more warps cost
more than they gain, and four programs per multiprocessor keep enough reads in flight.

Split-KV decoding is from Flash-Decoding (Dao et al., 2023); equal work items from FlashInfer (Ye et al., 2025).

Shape letters: S sequences, Q query heads, K kv heads, D head dimension, G = Q / K.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.triton.attention.codes import loaded, stored, unit
from octavo.kernels.triton.attention.join import join_parts
from octavo.kernels.triton.attention.memory import BOX_TOKENS, DecodeWorkspace, LayerPool, padded_dim
from octavo.kernels.triton.attention.plan import AttentionPlan
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform, norm_and_rotate
from octavo.kernels.triton.attention.scores import LOG2_E, cap_scores, finite, score_box, sum_with_sink
from octavo.kernels.triton.chain import prefetch_to_l2, wait_for_previous

NUM_WARPS = 2
PROGRAMS_PER_MULTIPROCESSOR = 4
MAX_TILE_BYTES = 16 << 10  # query rows that a program takes at once, for several new tokens


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
    queries: int = 1,
    chained: bool = False,
) -> None:
    """Write the rows of `out` [T, Q * D] that belong to decoding sequences. queries: the most new tokens of one, the
    plan's `decode_threshold`. transform: see `AttentionBackend.decode`. chained: the previous kernel writes q, and the
    plan was finished before that kernel."""
    assert queries == 1 or transform is None, "with several new tokens, another kernel writes the cache first"
    group = layer.num_heads // layer.num_kv_heads
    dim_pad = padded_dim(layer.head_dim)
    max_rows = MAX_TILE_BYTES // (dim_pad * q.element_size())
    tile_queries = max(1, min(queries, max_rows // group))  # at once
    rows = max(16, triton.next_power_of_2(group * tile_queries))
    parts = transform if transform is not None else HeadTransform.none(q)
    _decode_kernel[(num_multiprocessors * PROGRAMS_PER_MULTIPROCESSOR,)](
        q, out, pool.data, pool.rows, pool.layer_row, block_table,
        plan.totals, plan.items, workspace.counter, workspace.values, workspace.max_sum,
        parts.q_norm, parts.k_norm, parts.cos, parts.sin,
        pool.scales, pool.sinks, layer.scale * LOG2_E, layer.softcap or 0.0, parts.eps,
        q.stride(0), out.stride(0), block_table.stride(0), pool.block_stride, pool.value_offset,
        KV_HEADS=layer.num_kv_heads, GROUP=group, ROWS=rows,
        D=layer.head_dim, D_PAD=dim_pad, ROTARY=parts.rotary_dim, HAS_NORM=parts.has_norm,
        BLOCK_SIZE=pool.block_size, BLOCK_ROWS=pool.block_stride // layer.head_dim, BOX=BOX_TOKENS,
        SOFTCAP=layer.softcap is not None, FUSED=transform is not None,
        QUERIES=queries, TILE_QUERIES=tile_queries, WINDOW=(layer.window or 0) if queries > 1 else 0,
        **pool.codes, HAS_SINKS=pool.has_sinks, CHAINED=chained, launch_pdl=chained, num_stages=2,
        num_warps=NUM_WARPS if queries == 1 else max(NUM_WARPS, rows // 16),
    )  # fmt: skip
    join_parts(out, layer, pool, plan, workspace, query_start_loc, queries=queries, chained=chained)


@triton.jit(do_not_specialize=["table_stride"])
def _decode_kernel(
    q_ptr, out_ptr, pool, pool_rows, layer_row, block_table,
    totals, items, counter, part_values, part_max_sum,
    q_norm, k_norm, cos, sin,
    scales, sinks, scale_log2, softcap, eps,
    q_stride, out_stride, table_stride, block_stride, value_offset,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    D: tl.constexpr, D_PAD: tl.constexpr, ROTARY: tl.constexpr, HAS_NORM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BOX: tl.constexpr, SOFTCAP: tl.constexpr,
    FUSED: tl.constexpr, QUERIES: tl.constexpr, TILE_QUERIES: tl.constexpr, WINDOW: tl.constexpr,
    HAS_CODES: tl.constexpr, IS_FLOAT: tl.constexpr, HAS_SINKS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, ROWS)
    g = r if QUERIES == 1 else r % GROUP
    d = tl.arange(0, D_PAD)
    TILES: tl.constexpr = (QUERIES + TILE_QUERIES - 1) // TILE_QUERIES
    num_work = tl.load(totals) * KV_HEADS * TILES
    if CHAINED and QUERIES == 1:  # noqa: SIM102 (a compile-time condition around a run-time one)
        if tl.program_id(0) < num_work:
            _prefetch(
                items, tl.program_id(0), block_table, pool, table_stride, block_stride, value_offset,
                KV_HEADS, D, BLOCK_SIZE,
            )  # fmt: skip
    wait_for_previous(CHAINED)
    work = tl.atomic_add(counter, 1, sem="relaxed")
    while work < num_work:
        next_work = tl.atomic_add(counter, 1, sem="relaxed")  # fetched while this one is computed
        item = work // (KV_HEADS * TILES)
        kv_head = work % KV_HEADS
        record = items + item * 8
        table = block_table + tl.load(record).to(tl.int64) * table_stride
        token = tl.load(record + 1).to(tl.int64)
        position = tl.load(record + 2)
        begin = tl.load(record + 3)
        end = tl.load(record + 4)
        num_items = tl.load(record + 5)
        head_pool = pool + kv_head * BLOCK_SIZE * D
        head_scale = scale_log2 * unit(scales, kv_head, HAS_CODES, IS_FLOAT)

        num_rows = GROUP
        if QUERIES > 1:
            first_query = work // KV_HEADS % TILES * TILE_QUERIES
            num_queries = tl.load(record + 7)
            num_rows = tl.minimum(num_queries - first_query, TILE_QUERIES) * GROUP
            query = first_query + r // GROUP
            token = (token + query)[:, None]
            position = (position + 1 - num_queries + query)[:, None]
        q_mask = (r < num_rows)[:, None] & (d < D)[None, :]
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
                )
                v_new = tl.load(q_row + k_off + KV_HEADS * D + d_row, mask=d_row < D, other=0.0)
                k_scale = tl.load(scales + kv_head) if HAS_CODES else 1.0
                v_scale = tl.load(scales + KV_HEADS + kv_head) if HAS_CODES else 1.0
                k_new = stored(k_new, k_scale, pool.dtype.element_ty)
                v_new = stored(v_new, v_scale, pool.dtype.element_ty)
                block = tl.load(table + position // BLOCK_SIZE).to(tl.int64)
                cell = head_pool + block * block_stride + (position % BLOCK_SIZE) * D + d_row
                tl.store(cell, k_new, mask=d_row < D)
                tl.store(cell + value_offset, v_new, mask=d_row < D)
                scores = tl.sum(q.to(tl.float32) * loaded(k_new, tl.float32), 1) * head_scale
                m = cap_scores(scores, softcap, SOFTCAP)
                l = tl.full([ROWS], 1.0, tl.float32)
                acc += loaded(v_new, tl.float32)
                end -= 1
        else:
            q = tl.load(q_row + q_off + d[None, :], mask=q_mask, other=0.0)

        full_end = end // BOX * BOX
        row_begin = begin
        row_full_end = full_end
        row_end = end
        if QUERIES > 1:  # a row sees as far as its own token
            if WINDOW:
                row_begin = tl.maximum(begin, position + 1 - WINDOW)
            row_full_end = tl.minimum(full_end, position + 1)
            row_end = tl.minimum(end, position + 1)
        m, l, acc = _whole_boxes(
            q, m, l, acc, begin, full_end, row_begin, row_full_end, table, pool_rows,
            layer_row + kv_head * BLOCK_SIZE, head_scale, softcap,
            KV_HEADS * BLOCK_SIZE, BLOCK_SIZE, BLOCK_ROWS, BOX, SOFTCAP, QUERIES > 1,
        )  # fmt: skip
        if end > full_end:
            m, l, acc = _last_box(
                q, m, l, acc, full_end, end, row_begin, row_end, table, head_pool, block_stride, value_offset,
                head_scale, softcap, D, D_PAD, BLOCK_SIZE, BOX, SOFTCAP, QUERIES > 1,
            )  # fmt: skip
        if HAS_CODES:
            acc *= unit(scales, KV_HEADS + kv_head, HAS_CODES, IS_FLOAT)

        if num_items == 1:
            l = sum_with_sink(l, m, sinks, kv_head * GROUP + g, r < num_rows, HAS_SINKS)
            to = out_ptr + token * out_stride + q_off + d[None, :]
            tl.store(to, (acc / l[:, None]).to(out_ptr.dtype.element_ty), mask=q_mask)
        else:
            part = tl.load(record + 6).to(tl.int64)
            if QUERIES > 1:
                part = part * QUERIES + query
            head = part * (KV_HEADS * GROUP) + kv_head * GROUP + g
            tl.store(part_values + head[:, None] * D + d[None, :], acc, mask=q_mask)
            tl.store(part_max_sum + head * 2, m, mask=r < num_rows)
            tl.store(part_max_sum + head * 2 + 1, l, mask=r < num_rows)
        work = next_work


@triton.jit
def _whole_boxes(
    q, m, l, acc, begin, end, row_begin, row_end, table, pool_rows, row, scale_log2, softcap,
    VALUE_ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BOX: tl.constexpr,
    SOFTCAP: tl.constexpr, BY_ROW: tl.constexpr,
):  # fmt: skip
    """Fold the boxes that end by `end` into the softmax, four a turn. Past the last, it is read again and masked."""
    t = tl.arange(0, BOX)
    last = tl.maximum(end - BOX, 0)
    for start in range(begin // BOX * BOX, end, BOX * 4):
        row0 = _row_of(table, start, BLOCK_SIZE, BLOCK_ROWS) + row
        row1 = _row_of(table, tl.minimum(start + BOX, last), BLOCK_SIZE, BLOCK_ROWS) + row
        row2 = _row_of(table, tl.minimum(start + 2 * BOX, last), BLOCK_SIZE, BLOCK_ROWS) + row
        row3 = _row_of(table, tl.minimum(start + 3 * BOX, last), BLOCK_SIZE, BLOCK_ROWS) + row
        k0 = loaded(pool_rows.load([row0, 0]), q.dtype)
        k1 = loaded(pool_rows.load([row1, 0]), q.dtype)
        k2 = loaded(pool_rows.load([row2, 0]), q.dtype)
        k3 = loaded(pool_rows.load([row3, 0]), q.dtype)
        v0 = loaded(pool_rows.load([row0 + VALUE_ROWS, 0]), q.dtype)
        v1 = loaded(pool_rows.load([row1 + VALUE_ROWS, 0]), q.dtype)
        v2 = loaded(pool_rows.load([row2 + VALUE_ROWS, 0]), q.dtype)
        v3 = loaded(pool_rows.load([row3 + VALUE_ROWS, 0]), q.dtype)
        s0 = score_box(q, k0, start + t, row_begin, row_end, scale_log2, softcap, SOFTCAP, BY_ROW)
        s1 = score_box(q, k1, start + BOX + t, row_begin, row_end, scale_log2, softcap, SOFTCAP, BY_ROW)
        s2 = score_box(q, k2, start + 2 * BOX + t, row_begin, row_end, scale_log2, softcap, SOFTCAP, BY_ROW)
        s3 = score_box(q, k3, start + 3 * BOX + t, row_begin, row_end, scale_log2, softcap, SOFTCAP, BY_ROW)
        m_new = tl.maximum(m, tl.max(tl.maximum(tl.maximum(s0, s1), tl.maximum(s2, s3)), 1))
        base = finite(m_new) if BY_ROW else m_new
        alpha = tl.exp2(m - base)
        p0 = tl.exp2(s0 - base[:, None])
        p1 = tl.exp2(s1 - base[:, None])
        p2 = tl.exp2(s2 - base[:, None])
        p3 = tl.exp2(s3 - base[:, None])
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
    q, m, l, acc, start, end, row_begin, row_end, table, head_pool, block_stride, value_offset, scale_log2, softcap,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, BOX: tl.constexpr, SOFTCAP: tl.constexpr,
    BY_ROW: tl.constexpr,
):  # fmt: skip
    """Fold the partly filled box that begins at `start` into the softmax."""
    t = tl.arange(0, BOX)
    d = tl.arange(0, D_PAD)
    block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
    cell = head_pool + block * block_stride + (start % BLOCK_SIZE + t)[:, None] * D + d[None, :]
    mask = (start + t < end)[:, None] & (d < D)[None, :]
    k = loaded(tl.load(cell, mask=mask, other=0.0), q.dtype)
    v = loaded(tl.load(cell + value_offset, mask=mask, other=0.0), q.dtype)
    scores = score_box(q, k, start + t, row_begin, row_end, scale_log2, softcap, SOFTCAP, BY_ROW)
    m_new = tl.maximum(m, tl.max(scores, 1))
    base = finite(m_new) if BY_ROW else m_new
    p = tl.exp2(scores - base[:, None])
    alpha = tl.exp2(m - base)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")
    return m_new, l * alpha + tl.sum(p, 1), acc


@triton.jit
def _prefetch(
    items, work, block_table, pool, table_stride, block_stride, value_offset,
    KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Prefetch an item's keys and values to L2, 64 elements at a time, while the projection still runs."""
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
