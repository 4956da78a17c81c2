"""Attention for chunks of new tokens, through block tables: the prefill half of `paged_attention`.

    tile of a sequence's queries x one head ──> keys and values of the sequence, tile by tile:
        visible to every query of the tile              no mask
        at the diagonal, or near a window's edges       masked

Where tokens see those after them, too, a step has whole sequences, and the walk goes on to the sequence's end.

The new tokens' keys and values are already in the cache, so a chunk after a cached prefix, or after earlier chunks, is
the same walk over one block table. The plan lists the longest tiles first.

FlashAttention: Dao et al., 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.attention_sizes import PREFILL_TILE
from octavo.kernels.triton.attention.codes import loaded, unit
from octavo.kernels.triton.attention.memory import LayerPool, padded_dim
from octavo.kernels.triton.attention.plan import AttentionPlan
from octavo.kernels.triton.attention.scores import LOG2_E, cap_scores, finite, sum_with_sink
from octavo.kernels.triton.chain import wait_for_previous


@dataclass(frozen=True, slots=True)
class PrefillTiling:
    kv_tile: int
    num_stages: int


def choose_tiling(dim: int, element_size: int) -> PrefillTiling:
    """Measured on an H200; above two bytes or 128 elements, limited by shared memory."""
    return PrefillTiling(64, 3) if dim <= 64 and element_size <= 2 else PrefillTiling(32, 2)


def prefill_attention(
    q: torch.Tensor,
    out: torch.Tensor,
    layer: AttentionLayer,
    pool: LayerPool,
    plan: AttentionPlan,
    *,
    max_tiles: int,
    block_table: torch.Tensor,
    chained: bool = False,
) -> None:
    """Write the rows of `out` [T, Q * D] that belong to sequences with chunks. q [T, Q * D]; the cache is up to date.
    max_tiles: the plan's number of tiles or more; T // PREFILL_TILE + S is always enough."""
    dim_pad = padded_dim(layer.head_dim)
    tiling = choose_tiling(dim_pad, q.element_size())
    _prefill_kernel[(layer.num_heads, max_tiles)](
        q, out, pool.data, block_table, plan.totals, plan.tiles,
        pool.scales, pool.sinks, layer.scale * LOG2_E, layer.softcap or 0.0,
        q.stride(0), out.stride(0), block_table.stride(0), pool.block_stride, pool.value_offset,
        GROUP=layer.num_heads // layer.num_kv_heads, D=layer.head_dim, D_PAD=dim_pad, BLOCK_SIZE=pool.block_size,
        Q_TILE=PREFILL_TILE, KV_TILE=tiling.kv_tile, WINDOW=layer.window or 0, SOFTCAP=layer.softcap is not None,
        **pool.codes, HAS_SINKS=pool.has_sinks, KV_HEADS=layer.num_kv_heads, CAUSAL=layer.is_causal,
        CHAINED=chained, launch_pdl=chained,
        num_warps=8, num_stages=tiling.num_stages,
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride"])
def _prefill_kernel(
    q_ptr, out_ptr, pool, block_table, totals, tiles,
    scales, sinks, scale_log2, softcap, q_stride, out_stride, table_stride, block_stride, value_offset,
    GROUP: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    Q_TILE: tl.constexpr, KV_TILE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    HAS_CODES: tl.constexpr, IS_FLOAT: tl.constexpr, HAS_SINKS: tl.constexpr, KV_HEADS: tl.constexpr,
    CAUSAL: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    tile = tl.program_id(1)
    wait_for_previous(CHAINED)
    if tile >= tl.load(totals + 1):
        return
    record = tiles + tile * 8
    num_queries = tl.load(record + 1)
    first_position = tl.load(record + 2)
    table = block_table + tl.load(record + 4).to(tl.int64) * table_stride
    head_pool = pool + (head // GROUP) * BLOCK_SIZE * D
    scale_log2 *= unit(scales, head // GROUP, HAS_CODES, IS_FLOAT)

    i = tl.arange(0, Q_TILE)
    d = tl.arange(0, D_PAD)
    q_mask = (i < num_queries)[:, None] & (d < D)[None, :]
    token = (tl.load(record) + i).to(tl.int64)
    q = tl.load(q_ptr + token[:, None] * q_stride + head * D + d[None, :], mask=q_mask, other=0.0)
    position = first_position + i

    queries_end = first_position + tl.minimum(Q_TILE, num_queries)
    end = queries_end
    seen_by_all = first_position + 1  # the first key that the tile's first query does not see
    if not CAUSAL:
        end = tl.load(record + 3)
        seen_by_all = end
        if WINDOW:
            end = tl.minimum(end, queries_end + WINDOW - 1)
            seen_by_all = tl.minimum(end, first_position + WINDOW)
    begin = 0
    full_begin = 0
    if WINDOW:
        begin = tl.maximum(first_position - WINDOW + 1, 0) // KV_TILE * KV_TILE
        # the first key that the tile's last query also sees
        full_begin = tl.cdiv(tl.maximum(queries_end - WINDOW, 0), KV_TILE) * KV_TILE
    full_end = seen_by_all // KV_TILE * KV_TILE

    m = tl.full([Q_TILE], -float("inf"), tl.float32)
    l = tl.zeros([Q_TILE], tl.float32)
    acc = tl.zeros([Q_TILE, D_PAD], tl.float32)
    if WINDOW:
        edge = tl.minimum(full_begin, end)
        m, l, acc = _walk(
            q, m, l, acc, begin, edge, end, position, table, head_pool, block_stride, value_offset, scale_log2, softcap,
            D, D_PAD, BLOCK_SIZE, KV_TILE, WINDOW, SOFTCAP, CAUSAL, True,
        )  # fmt: skip
        full_begin = edge
    full_end = tl.maximum(full_end, full_begin)
    m, l, acc = _walk(
        q, m, l, acc, full_begin, full_end, end, position, table, head_pool, block_stride, value_offset, scale_log2,
        softcap, D, D_PAD, BLOCK_SIZE, KV_TILE, WINDOW, SOFTCAP, CAUSAL, False,
    )  # fmt: skip
    m, l, acc = _walk(
        q, m, l, acc, full_end, end, end, position, table, head_pool, block_stride, value_offset, scale_log2, softcap,
        D, D_PAD, BLOCK_SIZE, KV_TILE, WINDOW, SOFTCAP, CAUSAL, True,
    )  # fmt: skip
    l = sum_with_sink(l, m, sinks, head, True, HAS_SINKS)
    out = acc / l[:, None] * unit(scales, KV_HEADS + head // GROUP, HAS_CODES, IS_FLOAT)
    tl.store(
        out_ptr + token[:, None] * out_stride + head * D + d[None, :], out.to(out_ptr.dtype.element_ty), mask=q_mask
    )


@triton.jit
def _walk(
    q, m, l, acc, begin, stop, end, position, table, head_pool, block_stride, value_offset, scale_log2, softcap,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, KV_TILE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Fold the keys begin .. stop-1 into the softmax, a tile at a time; `end` is the sequence's end so far, or that of
    what the tile sees."""
    offs = tl.arange(0, KV_TILE)
    d = tl.arange(0, D_PAD)
    for start in range(begin, stop, KV_TILE):
        t = start + offs
        if MASKED:
            block = tl.load(table + t // BLOCK_SIZE, mask=t < end, other=0).to(tl.int64)
            kv_mask = (t < end)[:, None] & (d < D)[None, :]
        else:
            block = tl.load(table + t // BLOCK_SIZE).to(tl.int64)
            kv_mask = (d < D)[None, :]
        cell = head_pool + (block * block_stride + (t % BLOCK_SIZE) * D)[:, None] + d[None, :]
        if MASKED or D != D_PAD:
            k = loaded(tl.load(cell, mask=kv_mask, other=0.0), q.dtype)
            v = loaded(tl.load(cell + value_offset, mask=kv_mask, other=0.0), q.dtype)
        else:
            k = loaded(tl.load(cell), q.dtype)
            v = loaded(tl.load(cell + value_offset), q.dtype)
        scores = cap_scores(tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2, softcap, SOFTCAP)
        if MASKED:
            seen = (t < end)[None, :]
            if CAUSAL:
                seen = seen & (t[None, :] <= position[:, None])
            elif WINDOW:
                seen = seen & (t[None, :] < position[:, None] + WINDOW)
            if WINDOW:
                seen = seen & (t[None, :] > position[:, None] - WINDOW)
            scores = tl.where(seen, scores, -float("inf"))
        m_new = tl.maximum(m, tl.max(scores, 1))
        base = finite(m_new) if MASKED else m_new
        p = tl.exp2(scores - base[:, None])
        alpha = tl.exp2(m - base)
        l = l * alpha + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")
        m = m_new
    return m, l, acc
