"""Joins the partial results that attention leaves for a sequence that it attends to in several items."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.triton.attention.memory import DecodeWorkspace, LayerPool, padded_dim
from octavo.kernels.triton.attention.plan import AttentionPlan
from octavo.kernels.triton.attention.scores import sum_with_sink
from octavo.kernels.triton.chain import wait_for_previous

JOIN_PARTS = 4  # partial results joined per turn: most sequences have no more


def join_parts(
    out: torch.Tensor,
    layer: AttentionLayer,
    pool: LayerPool,
    plan: AttentionPlan,
    workspace: DecodeWorkspace,
    query_start_loc: torch.Tensor,
    *,
    queries: int = 1,
    chained: bool,
) -> None:
    """Combine the partial results of sequences with several items, and reset the workspace's counter."""
    _join_kernel[(len(query_start_loc) - 1, layer.num_heads, queries)](
        out, plan.item_ranges, query_start_loc, workspace.counter, workspace.values, workspace.max_sum, pool.sinks,
        out.stride(0),
        Q_HEADS=layer.num_heads, D=layer.head_dim, D_PAD=padded_dim(layer.head_dim), PARTS=JOIN_PARTS,
        QUERIES=queries, HAS_SINKS=pool.has_sinks, CHAINED=chained, launch_pdl=chained, num_warps=1,
    )  # fmt: skip


@triton.jit
def _join_kernel(
    out_ptr, item_ranges, query_start_loc, counter, part_values, part_max_sum, sinks, out_stride,
    Q_HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, PARTS: tl.constexpr, QUERIES: tl.constexpr,
    HAS_SINKS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One program per sequence, query head and new token."""
    s = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(item_ranges + s * 2).to(tl.int64)
    num_items = tl.load(item_ranges + s * 2 + 1)
    token = tl.load(query_start_loc + s).to(tl.int64)
    if QUERIES > 1:
        query = tl.program_id(2)
        token += query
        num_items = tl.where(token < tl.load(query_start_loc + s + 1), num_items, 0)
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
            if QUERIES > 1:
                at = ((first + start + part) * QUERIES + query) * Q_HEADS + head
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
        l = sum_with_sink(l, m, sinks, head, True, HAS_SINKS)
        tl.store(out_ptr + token * out_stride + head * D + d, (acc / l).to(out_ptr.dtype.element_ty), mask=d < D)
