"""Attention of one new token a sequence, through block tables: the decode half of `paged_attention`.

Reading keys and values is all the cost, so each is read once, by whoever holds all query heads that share
it, and the reads of a ragged batch are cut into equal items (see `plan.py`):

    items x kv heads ──dealt out to──> persistent programs
        program: tiles of an item's tokens ─> online softmax over [query heads of the kv head, D]
            sequence of one item:   the result
            of several:             partial (max, sum, weighted values), float32
                                    the last program of a (sequence, kv head) to arrive joins its partials,
                                    in order: the result does not depend on who was last

Fused, the kernel takes packed q, k, v as the projection made them: it norms and rotates its query, and the
item that holds the new token writes its key and value to the cache. No other item reads them there.

Split-KV decoding is from Flash-Decoding (Dao et al., 2023); equal work items from FlashInfer (Ye et al., 2025).

Shape letters: S sequences, Q query heads, K kv heads, D head dimension, G = Q / K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.ops import AttentionLayer
from octavo.kernels.triton.chain import prefetch_to_l2, wait_for_previous
from octavo.kernels.triton.kv_pool import LayerPool
from octavo.kernels.triton.plan import MAX_PARTITIONS, AttentionPlan
from octavo.kernels.triton.rotary_kv_write import HeadTransform, norm_and_rotate


@dataclass(frozen=True, slots=True, eq=False)
class DecodeWorkspace:
    """Partial results between the items of one launch; layers share it, since they run one after another."""

    values: torch.Tensor  # [max items, Q, D] float32
    max_sum: torch.Tensor  # [max items, Q, 2] float32
    arrived: torch.Tensor  # [S, K] int32, zero between launches

    @classmethod
    def allocate(cls, max_num_seqs: int, num_heads: int, head_dim: int, device: torch.device) -> DecodeWorkspace:
        max_items = max_num_seqs * MAX_PARTITIONS
        return cls(
            torch.empty((max_items, num_heads, head_dim), dtype=torch.float32, device=device),
            torch.empty((max_items, num_heads, 2), dtype=torch.float32, device=device),
            torch.zeros((max_num_seqs, num_heads), dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True)
class DecodeTiling:
    """tile: tokens a turn, for 256 bytes a head; programs: how many share a multiprocessor."""

    tile: int
    num_warps: int
    num_stages: int
    programs: int
    max_registers: int
    join_inside: bool


TILING = DecodeTiling(tile=64, num_warps=4, num_stages=3, programs=4, max_registers=128, join_inside=False)


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
    the projection, and the cache receives the new keys and values. `chained`: the previous kernel made q, and the plan
    was finished before it.
    """
    group = layer.num_heads // layer.num_kv_heads
    group_pad = triton.next_power_of_2(group)
    dim_pad = triton.next_power_of_2(layer.head_dim)
    parts = transform if transform is not None else HeadTransform.none(q)
    tile = min(TILING.tile, TILING.tile * 256 // (dim_pad * pool.data.element_size()))
    _decode_kernel[(num_multiprocessors * TILING.programs,)](
        q, out, pool.data, block_table,
        plan.totals, plan.items, workspace.values, workspace.max_sum, workspace.arrived,
        parts.q_norm, parts.k_norm, parts.cos, parts.sin,
        layer.scale * 1.4426950408889634, layer.softcap or 0.0, parts.eps,
        q.stride(0), out.stride(0), block_table.stride(0), pool.block_stride, pool.value_offset,
        KV_HEADS=layer.num_kv_heads, GROUP=group, GROUP_PAD=group_pad, ROWS=max(16, group_pad),
        D=layer.head_dim, D_PAD=dim_pad, ROTARY=parts.rotary_dim, HAS_NORM=parts.has_norm,
        BLOCK_SIZE=pool.block_size, TILE=tile, SOFTCAP=layer.softcap is not None,
        FUSED=transform is not None, JOIN_INSIDE=TILING.join_inside, MAX_PARTITIONS=MAX_PARTITIONS, JOIN=max(1, 512 * TILING.num_warps // (group_pad * dim_pad)),
        CHAINED=chained, launch_pdl=chained, num_warps=TILING.num_warps, num_stages=TILING.num_stages,
        maxnreg=TILING.max_registers,
    )  # fmt: skip
    if not TILING.join_inside:
        _join_kernel[(len(query_start_loc) - 1, layer.num_heads)](
            out, plan.item_ranges, query_start_loc, workspace.values, workspace.max_sum, out.stride(0),
            Q_HEADS=layer.num_heads, D=layer.head_dim, D_PAD=dim_pad, MAX_PARTITIONS=MAX_PARTITIONS,
            CHAINED=chained, launch_pdl=chained, num_warps=4,
        )  # fmt: skip


@triton.jit
def _decode_kernel(
    q_ptr, out_ptr, pool, block_table,
    totals, items, part_values, part_max_sum, arrived,
    q_norm, k_norm, cos, sin,
    scale_log2, softcap, eps,
    q_stride, out_stride, table_stride, block_stride, value_offset,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, ROWS: tl.constexpr,
    D: tl.constexpr, D_PAD: tl.constexpr, ROTARY: tl.constexpr, HAS_NORM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, SOFTCAP: tl.constexpr,
    FUSED: tl.constexpr, JOIN_INSIDE: tl.constexpr, MAX_PARTITIONS: tl.constexpr, JOIN: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    g = tl.arange(0, ROWS)
    d = tl.arange(0, D_PAD)
    offs = tl.arange(0, TILE)
    num_work = tl.load(totals) * KV_HEADS
    work = tl.program_id(0)
    if CHAINED:
        if work < num_work:
            _prefetch(items, work, block_table, pool, table_stride, block_stride, value_offset,
                      KV_HEADS, D, BLOCK_SIZE, TILE)  # fmt: skip
    wait_for_previous(CHAINED)
    for work in range(tl.program_id(0), num_work, tl.num_programs(0)):
        item = work // KV_HEADS
        kv_head = work % KV_HEADS
        record = items + item * 8
        s = tl.load(record)
        table = block_table + tl.load(record + 1).to(tl.int64) * table_stride
        token = tl.load(record + 2).to(tl.int64)
        position = tl.load(record + 3)
        begin = tl.load(record + 4)
        end = tl.load(record + 5)
        first_item = tl.load(record + 6)
        num_items = tl.load(record + 7)
        head_pool = pool + kv_head * BLOCK_SIZE * D

        q_mask = (g < GROUP)[:, None] & (d < D)[None, :]
        q_row = q_ptr + token * q_stride
        q_off = (kv_head * GROUP + g)[:, None] * D
        if FUSED:
            q = norm_and_rotate(
                q_row, q_off, q_norm, cos, sin, position, eps, d[None, :], q_mask, D, ROTARY, HAS_NORM
            ).to(q_ptr.dtype.element_ty)
        else:
            q = tl.load(q_row + q_off + d[None, :], mask=q_mask, other=0.0)

        m = tl.full([ROWS], -float("inf"), tl.float32)
        l = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, D_PAD], tl.float32)
        if FUSED:
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
                m = _scores(tl.sum(q.to(tl.float32) * k_new.to(tl.float32), 1), scale_log2, softcap, SOFTCAP)
                l = tl.full([ROWS], 1.0, tl.float32)
                acc += v_new.to(tl.float32)
                end -= 1

        for start in range(begin, end, TILE):
            t = start + offs
            block = tl.load(table + t // BLOCK_SIZE, mask=t < end, other=0).to(tl.int64)
            cell = head_pool + (block * block_stride + (t % BLOCK_SIZE) * D)[:, None] + d[None, :]
            kv_mask = (t < end)[:, None] & (d < D)[None, :]
            k = tl.load(cell, mask=kv_mask, other=0.0)
            v = tl.load(cell + value_offset, mask=kv_mask, other=0.0)
            scores = _scores(tl.dot(q, tl.trans(k), input_precision="ieee"), scale_log2, softcap, SOFTCAP)
            scores = tl.where((t < end)[None, :], scores, -float("inf"))
            m_new = tl.maximum(m, tl.max(scores, 1))
            p = tl.exp2(scores - m_new[:, None])
            alpha = tl.exp2(m - m_new)
            l = l * alpha + tl.sum(p, 1)
            acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision="ieee")
            m = m_new

        out_head = out_ptr + token * out_stride + (kv_head * GROUP + g)[:, None] * D + d[None, :]
        if num_items == 1:
            tl.store(out_head, (acc / l[:, None]).to(out_ptr.dtype.element_ty), mask=q_mask)
        else:
            head = item.to(tl.int64) * (KV_HEADS * GROUP) + kv_head * GROUP + g
            tl.store(part_values + head[:, None] * D + d[None, :], acc, mask=q_mask)
            tl.store(part_max_sum + head * 2, m, mask=g < GROUP)
            tl.store(part_max_sum + head * 2 + 1, l, mask=g < GROUP)
            if JOIN_INSIDE:
                tl.debug_barrier()
                counter = arrived + s * KV_HEADS + kv_head
                if tl.atomic_add(counter, 1, sem="acq_rel") == num_items - 1:
                    tl.store(counter, 0)
                    _join(
                        part_values, part_max_sum, first_item, num_items, kv_head,
                        out_ptr + token * out_stride, KV_HEADS, GROUP, GROUP_PAD, D, D_PAD, MAX_PARTITIONS, JOIN,
                    )  # fmt: skip


@triton.jit
def _join_kernel(
    out_ptr, item_ranges, query_start_loc, part_values, part_max_sum, out_stride,
    Q_HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, MAX_PARTITIONS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One program a sequence and query head: all its partial results at once."""
    s = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(item_ranges + s * 2).to(tl.int64)
    num_items = tl.load(item_ranges + s * 2 + 1)
    token = tl.load(query_start_loc + s).to(tl.int64)
    wait_for_previous(CHAINED)
    if num_items > 1:
        part = tl.arange(0, MAX_PARTITIONS)
        d = tl.arange(0, D_PAD)
        live = part < num_items
        at = (first + part) * Q_HEADS + head
        part_max = tl.load(part_max_sum + at * 2, mask=live, other=-float("inf"))
        part_sum = tl.load(part_max_sum + at * 2 + 1, mask=live, other=0.0)
        values = tl.load(
            part_values + at[:, None] * D + d[None, :], mask=live[:, None] & (d < D)[None, :], other=0.0
        )
        weight = tl.exp2(part_max - tl.max(part_max, 0))
        joined = tl.sum(values * weight[:, None], 0) / tl.sum(part_sum * weight, 0)
        tl.store(out_ptr + token * out_stride + head * D + d, joined.to(out_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def _prefetch(
    items, work, block_table, pool, table_stride, block_stride, value_offset,
    KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Ask for all of an item's keys and values: 128 bytes at a time."""
    record = items + work // KV_HEADS * 8
    table = block_table + tl.load(record + 1).to(tl.int64) * table_stride
    end = tl.load(record + 5)
    for start in range(tl.load(record + 4), end, TILE):
        t = tl.minimum(start + tl.arange(0, TILE), end - 1)
        block = tl.load(table + t // BLOCK_SIZE).to(tl.int64)
        cell = pool + (work % KV_HEADS) * BLOCK_SIZE * D + block * block_stride + (t % BLOCK_SIZE) * D
        for line in tl.static_range(0, D, 64):
            prefetch_to_l2(cell + line)
            prefetch_to_l2(cell + value_offset + line)


@triton.jit
def _scores(dots, scale_log2, softcap, SOFTCAP: tl.constexpr):
    """Scores times log2(e), for exp2."""
    scores = dots * scale_log2
    if SOFTCAP:
        # c * tanh(x / c), x = scores / log2(e)
        inner = scores / (softcap * 1.4426950408889634)
        e = tl.exp2(-2.885390081777927 * tl.abs(inner))
        tanh = (1 - e) / (1 + e)
        scores = tl.where(inner < 0, -tanh, tanh) * (softcap * 1.4426950408889634)
    return scores


@triton.jit
def _join(
    part_values, part_max_sum, first_item, num_items, kv_head, out_row,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    MAX_PARTITIONS: tl.constexpr, JOIN: tl.constexpr,
):  # fmt: skip
    """Join the partial results of one sequence's items for one kv head."""
    g = tl.arange(0, GROUP_PAD)
    d = tl.arange(0, D_PAD)
    part = tl.arange(0, MAX_PARTITIONS)
    first = first_item.to(tl.int64)
    head = kv_head * GROUP + g
    mask = (part < num_items)[:, None] & (g < GROUP)[None, :]
    at = part_max_sum + ((first + part)[:, None] * (KV_HEADS * GROUP) + head[None, :]) * 2
    part_max = tl.load(at, mask=mask, other=-float("inf"), cache_modifier=".cg")
    part_sum = tl.load(at + 1, mask=mask, other=0.0, cache_modifier=".cg")
    best = tl.max(part_max, 0)
    best = tl.where(g < GROUP, best, 0.0)
    total = tl.sum(part_sum * tl.exp2(part_max - best[None, :]), 0)

    joined = tl.zeros([GROUP_PAD, D_PAD], tl.float32)
    few = tl.arange(0, JOIN)
    for start in range(0, num_items, JOIN):
        live = start + few < num_items
        row = (first + start + few)[:, None] * (KV_HEADS * GROUP) + head[None, :]
        row_mask = live[:, None] & (g < GROUP)[None, :]
        weight = tl.exp2(
            tl.load(part_max_sum + row * 2, mask=row_mask, other=-float("inf"), cache_modifier=".cg") - best[None, :]
        )
        values = tl.load(
            part_values + row[:, :, None] * D + d[None, None, :],
            mask=row_mask[:, :, None] & (d < D)[None, None, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        joined += tl.sum(values * weight[:, :, None], 0)
    total = tl.where(g < GROUP, total, 1.0)
    tl.store(
        out_row + head[:, None] * D + d[None, :],
        (joined / total[:, None]).to(out_row.dtype.element_ty),
        mask=(g < GROUP)[:, None] & (d < D)[None, :],
    )
