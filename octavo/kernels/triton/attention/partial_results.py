"""Partial results of sequences that are attended to in several items, and the kernel that joins them.

Shape letters as in `decode_attention.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.ops import AttentionLayer
from octavo.kernels.triton.attention.kv_pool import padded_dim
from octavo.kernels.triton.attention.plan import MAX_PARTITIONS, AttentionPlan
from octavo.kernels.triton.chain import wait_for_previous

JOIN_PARTS = 4  # partial results a turn: most sequences have no more


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


def join_parts(
    out: torch.Tensor,
    layer: AttentionLayer,
    plan: AttentionPlan,
    workspace: DecodeWorkspace,
    query_start_loc: torch.Tensor,
    *,
    queries: int = 1,
    chained: bool,
) -> None:
    """The results of sequences of several items, from their partial ones; ends what attended to the items."""
    _join_kernel[(len(query_start_loc) - 1, layer.num_heads, queries)](
        out, plan.item_ranges, query_start_loc, workspace.counter, workspace.values, workspace.max_sum, out.stride(0),
        Q_HEADS=layer.num_heads, D=layer.head_dim, D_PAD=padded_dim(layer.head_dim), PARTS=JOIN_PARTS,
        QUERIES=queries, CHAINED=chained, launch_pdl=chained, num_warps=1,
    )  # fmt: skip


@triton.jit
def _join_kernel(
    out_ptr, item_ranges, query_start_loc, counter, part_values, part_max_sum, out_stride,
    Q_HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, PARTS: tl.constexpr, QUERIES: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """One program a sequence, query head and new token."""
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
        tl.store(out_ptr + token * out_stride + head * D + d, (acc / l).to(out_ptr.dtype.element_ty), mask=d < D)
