"""Attention for one new token per sequence, on Hopper: reads the items of `decode_attention.py` without a pause.

    two persistent programs per multiprocessor:

    a loader     item after item, 64 tokens of keys and values per stage ──copy engine──> a ring in shared memory
    a computer   norms and rotates the item's queries; then scores, softmax and values, one stage at a time

Reading is all the cost, and a program stops reading while it looks up what to read next or computes its queries. Here
the loader looks up, several stages ahead, and the computer computes, so neither delays the reads. The cache's old
tokens do not depend on the previous kernel: chained, the ring fills while that kernel still runs.

The new token's key and value go from registers to the cache and into the stage that holds its slot. The few queries
that share a kv head are the first of a warpgroup's 64 rows: the matrix units have time to multiply the other rows'
zeros, and the keys need not pass through registers.

It takes 16-bit caches, heads of 64 or 128 without a cap, and up to 16 query heads per kv head.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_wait

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.triton.attention.hopper import (
    PoolBoxes,
    barrier,
    field,
    load_box,
    make_barriers,
    read_record,
    write_record,
)
from octavo.kernels.triton.attention.memory import BOX_TOKENS, DecodeWorkspace, LayerPool
from octavo.kernels.triton.attention.plan import AttentionPlan
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform, norm_and_rotate
from octavo.kernels.triton.attention.scores import LOG2_E
from octavo.kernels.triton.chain import wait_for_previous

PROGRAMS_PER_MULTIPROCESSOR = 2
STAGE = gl.constexpr(64)  # tokens
BOX = gl.constexpr(BOX_TOKENS)
QUERIES = gl.constexpr(16)
ROWS = gl.constexpr(64)  # of a warpgroup's product

# the fields of an item's record
KV_HEAD = gl.constexpr(0)
TABLE_ROW = gl.constexpr(1)
TOKEN = gl.constexpr(2)  # the new token's index in the step
POSITION = gl.constexpr(3)  # the new token's
BEGIN = gl.constexpr(4)  # the item's first token
END = gl.constexpr(5)  # 0: no more work
NUM_ITEMS = gl.constexpr(6)  # of the sequence
PART = gl.constexpr(7)  # the place of its partial result


class HopperDecode:
    """The kernel, and the state that its launches share."""

    def __init__(self, num_multiprocessors: int) -> None:
        self._num_programs = num_multiprocessors * PROGRAMS_PER_MULTIPROCESSOR
        self._pools = PoolBoxes()

    def attend(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        layer: AttentionLayer,
        pool: LayerPool,
        plan: AttentionPlan,
        workspace: DecodeWorkspace,
        block_table: torch.Tensor,
        transform: HeadTransform | None,
        *,
        chained: bool,
    ) -> None:
        """Compute the plan's items. A sequence with one item gets its result in `out`; others leave partial results in
        the workspace."""
        dim = layer.head_dim
        heads = transform if transform is not None else HeadTransform.none(q)
        _kernel[(self._num_programs,)](
            q, out, pool.data, self._pools.boxes(pool, BOX_TOKENS), block_table, plan.totals, plan.items,
            workspace.counter, workspace.values, workspace.max_sum,
            heads.q_norm, heads.k_norm, heads.cos, heads.sin, pool.sinks, layer.scale * LOG2_E, heads.eps,
            q.stride(0), out.stride(0), block_table.stride(0), pool.block_stride, pool.value_offset,
            pool.layer_row, pool.rows.shape[0],
            KV_HEADS=layer.num_kv_heads, GROUP=layer.num_heads // layer.num_kv_heads, D=dim,
            BLOCK_SIZE=pool.block_size, ROTARY=heads.rotary_dim, HAS_NORM=heads.has_norm,
            FUSED=transform is not None, HAS_SINKS=pool.has_sinks, STAGES=384 // dim, CHAINED=chained,
            launch_pdl=chained, num_warps=4, maxnreg=128,
        )  # fmt: skip


@gluon.jit(do_not_specialize=["table_stride"])
def _kernel(
    q_ptr, out_ptr, pool_ptr, boxes, block_table, totals, items, counter, part_values, part_max_sum,
    q_norm, k_norm, cos, sin, sinks, scale_log2, eps,
    q_stride, out_stride, table_stride, block_stride, value_offset, layer_row, total_rows,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    ROTARY: gl.constexpr, HAS_NORM: gl.constexpr, FUSED: gl.constexpr, HAS_SINKS: gl.constexpr, STAGES: gl.constexpr,
    CHAINED: gl.constexpr,
):  # fmt: skip
    q = gl.allocate_shared_memory(boxes.dtype, [ROWS, D], boxes.layout)
    k = gl.allocate_shared_memory(boxes.dtype, [STAGES, STAGE, D], boxes.layout)
    v = gl.allocate_shared_memory(boxes.dtype, [STAGES, STAGE, D], boxes.layout)
    records = gl.allocate_shared_memory(gl.int32, [2, 8], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    record_full = make_barriers(2, 1)
    record_free = make_barriers(2, 1)
    full = make_barriers(STAGES, 1)
    free = make_barriers(STAGES, 1)
    work = (records, record_full, record_free)
    ring = (k, v, full, free)
    heads = (q_ptr, q_stride, q_norm, k_norm, cos, sin, eps)
    cache = (pool_ptr, block_table, table_stride, block_stride, value_offset)
    result = (out_ptr, out_stride, part_values, part_max_sum, sinks)
    gl.warp_specialize(
        [
            (_compute, (work, ring, q, heads, cache, result, scale_log2,
                        KV_HEADS, GROUP, BLOCK_SIZE, ROTARY, HAS_NORM, FUSED, HAS_SINKS, CHAINED)),
            (_load, (work, ring, boxes, block_table, table_stride, block_stride, layer_row, total_rows,
                     totals, items, counter, KV_HEADS, BLOCK_SIZE, CHAINED and not FUSED)),
        ],
        [1],
        [24],
    )  # fmt: skip


@gluon.jit
def _load(
    work, ring, boxes, block_table, table_stride, block_stride, layer_row, total_rows, totals, items, counter,
    KV_HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr, WAIT: gl.constexpr,
):  # fmt: skip
    """Fetch items, starting with the program's own, describe them in `records`, and load their keys and values. The
    last record is empty."""
    records, record_full, record_free = work
    k, v, full, free = ring
    stages: gl.constexpr = k.shape[0]
    dim: gl.constexpr = k.shape[2]
    block_rows = block_stride // dim
    if WAIT:  # the kernel before has just written the newest tokens
        gdc_wait()
    num_work = gl.load(totals) * KV_HEADS
    turn = 0
    count = 0
    piece = gl.program_id(0)
    table_row, token, position, begin, end, num_items, part = _look_up(piece, items, num_work, KV_HEADS)
    while piece < num_work:
        kv_head = piece % KV_HEADS
        first = begin // STAGE * STAGE
        num_stages = gl.cdiv(end - first, STAGE)
        slot = turn % 2
        mbarrier.wait(record_free.index(slot), (turn // 2 & 1) ^ 1)
        write_record(records.index(slot), kv_head, table_row, token, position, begin, end, num_items, part)
        mbarrier.arrive(record_full.index(slot), count=1)
        table = block_table + table_row.to(gl.int64) * table_stride
        head_row = layer_row + kv_head * BLOCK_SIZE
        item_end = end
        for i in range(num_stages):
            stage = count % stages
            mbarrier.wait(free.index(stage), (count // stages & 1) ^ 1)
            mbarrier.expect(full.index(stage), 2 * STAGE * dim * 2)
            for b in gl.static_range(STAGE // BOX):
                t = first + i * STAGE + b * BOX
                block = gl.load(table + gl.where(t < item_end, t // BLOCK_SIZE, 0))
                row = block * block_rows + head_row + t % BLOCK_SIZE
                row = gl.where(t < item_end, row, total_rows)  # outside the pool: loads zeros
                to = k.index(stage).slice(b * BOX, BOX)
                load_box(boxes, [row, 0], full.index(stage), to)
                to = v.index(stage).slice(b * BOX, BOX)
                row += KV_HEADS * BLOCK_SIZE
                load_box(boxes, [row, 0], full.index(stage), to)
            count += 1
            if i == 0:  # look up the next item while the rest of this one loads
                piece = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
                table_row, token, position, begin, end, num_items, part = _look_up(piece, items, num_work, KV_HEADS)
        turn += 1
    mbarrier.wait(record_free.index(turn % 2), (turn // 2 & 1) ^ 1)
    write_record(records.index(turn % 2), 0, 0, 0, 0, 0, 0, 0, 0)
    mbarrier.arrive(record_full.index(turn % 2), count=1)


@gluon.jit
def _look_up(piece, items, num_work, KV_HEADS: gl.constexpr):
    """A piece's item in the plan; any item if there is no such piece."""
    record = items + gl.maximum(gl.minimum(piece, num_work - 1), 0) // KV_HEADS * 8
    return (
        gl.load(record), gl.load(record + 1), gl.load(record + 2), gl.load(record + 3), gl.load(record + 4),
        gl.load(record + 5), gl.load(record + 6),
    )  # fmt: skip


@gluon.jit
def _compute(
    work, ring, q, heads, cache, result, scale_log2,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    ROTARY: gl.constexpr, HAS_NORM: gl.constexpr, FUSED: gl.constexpr, HAS_SINKS: gl.constexpr,
    CHAINED: gl.constexpr,
):  # fmt: skip
    records, record_full, record_free = work
    k, v, full, free = ring
    out_ptr, out_stride, part_values, part_max_sum, sinks = result
    stages: gl.constexpr = k.shape[0]
    dim: gl.constexpr = k.shape[2]
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, STAGE, 16])
    value_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, dim, 16])
    value_rows: gl.constexpr = gl.SliceLayout(1, value_layout)
    operand: gl.constexpr = gl.DotOperandLayout(0, value_layout, 2)
    rows_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // dim, dim // 8], [4, 1], [1, 0])
    q.store(gl.zeros([ROWS, dim], gl.float32, rows_layout).to(q.dtype))
    turn = 0
    count = 0
    wait_for_previous(CHAINED)
    record = read_record(records, record_full, turn)
    while field(record, END) > 0:
        kv_head, table_row, token = field(record, KV_HEAD), field(record, TABLE_ROW), field(record, TOKEN)
        position, begin, end = field(record, POSITION), field(record, BEGIN), field(record, END)
        num_items, part = field(record, NUM_ITEMS), field(record, PART)
        first = begin // STAGE * STAGE
        num_stages = gl.cdiv(end - first, STAGE)
        _place_queries(q, heads, token, position, kv_head, GROUP, ROTARY, HAS_NORM, FUSED)

        m = gl.full([ROWS], -float("inf"), gl.float32, gl.SliceLayout(1, score_layout))
        l = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, score_layout))
        acc = gl.zeros([ROWS, dim], gl.float32, value_layout)
        for i in range(num_stages):
            stage = count % stages
            start = first + i * STAGE
            mbarrier.wait(full.index(stage), count // stages & 1)
            if start + STAGE > position:  # the stage where the sequence ends
                _finish_stage(
                    k.index(stage), v.index(stage), position - start, heads, cache, table_row, token, position,
                    kv_head, KV_HEADS, GROUP, BLOCK_SIZE, ROTARY, HAS_NORM, FUSED,
                )  # fmt: skip
            nothing = gl.zeros([ROWS, STAGE], gl.float32, score_layout)
            scores = warpgroup_mma(q, k.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
            scores = warpgroup_mma_wait(0, deps=[scores])
            if (start < begin) | (start + STAGE > end):
                t = start + gl.arange(0, STAGE, gl.SliceLayout(0, score_layout))
                scores = gl.where(((t >= begin) & (t < end))[None, :], scores, -float("inf"))
            m_new = gl.maximum(m, gl.max(scores, 1))
            p = gl.exp2(scores * scale_log2 - (m_new * scale_log2)[:, None])
            alpha = gl.exp2((m - m_new) * scale_log2)
            l = l * alpha + gl.sum(p, 1)
            m = m_new
            acc = acc * gl.convert_layout(alpha, value_rows)[:, None]
            weights = gl.convert_layout(p.to(q.dtype), operand)
            acc = warpgroup_mma(weights, v.index(stage), acc, is_async=True)
            acc, weights = warpgroup_mma_wait(0, deps=[acc, weights])
            mbarrier.arrive(free.index(stage), count=1)
            count += 1
        mbarrier.arrive(record_free.index(turn % 2), count=1)

        g = gl.arange(0, ROWS, value_rows)
        d = gl.arange(0, dim, gl.SliceLayout(0, value_layout))
        mask = (g < GROUP)[:, None]
        sums = gl.convert_layout(l, value_rows)
        head = kv_head * GROUP + g
        largest = gl.convert_layout(m, value_rows) * scale_log2
        if num_items == 1:
            if HAS_SINKS:
                sink = gl.load(sinks + head, mask=g < GROUP, other=0.0) * 1.4426950408889634
                sums += gl.exp2(sink - largest)
            to = out_ptr + token.to(gl.int64) * out_stride + head[:, None] * dim + d[None, :]
            gl.store(to, (acc / sums[:, None]).to(q.dtype), mask=mask)
        else:
            at = part.to(gl.int64) * (KV_HEADS * GROUP) + head
            gl.store(part_values + at[:, None] * dim + d[None, :], acc, mask=mask)
            gl.store(part_max_sum + at * 2, largest, mask=g < GROUP)
            gl.store(part_max_sum + at * 2 + 1, sums, mask=g < GROUP)
        turn += 1
        record = read_record(records, record_full, turn)


@gluon.jit
def _place_queries(
    q, heads, token, position, kv_head,
    GROUP: gl.constexpr, ROTARY: gl.constexpr, HAS_NORM: gl.constexpr, FUSED: gl.constexpr,
):  # fmt: skip
    """The new token's queries of one kv head into the first rows of q; the others stay zero."""
    q_ptr, q_stride, q_norm, _, cos, sin, eps = heads
    dim: gl.constexpr = q.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, dim // 32], [1, 32], [4, 1], [1, 0])
    g = gl.arange(0, QUERIES, gl.SliceLayout(1, layout))[:, None]
    d = gl.arange(0, dim, gl.SliceLayout(0, layout))[None, :]
    row = q_ptr + token.to(gl.int64) * q_stride
    offset = (kv_head * GROUP + g) * dim
    mask = (g < GROUP) & (d < dim)
    if FUSED:
        x = norm_and_rotate(row, offset, q_norm, cos, sin, position, eps, d, mask, dim, ROTARY, HAS_NORM)
    else:
        x = gl.load(row + offset + d, mask=mask, other=0.0)
    q.slice(0, QUERIES).store(x.to(q.dtype))
    fence_async_shared()
    barrier()


@gluon.jit
def _finish_stage(
    k, v, last, heads, cache, table_row, token, position, kv_head,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    ROTARY: gl.constexpr, HAS_NORM: gl.constexpr, FUSED: gl.constexpr,
):  # fmt: skip
    """Row `last` is the new token's: fused, put its key and value there and into the cache. Zero the values after it:
    what lies in a block's free slots may be anything, and 0 * NaN is NaN."""
    q_ptr, q_stride, _, k_norm, cos, sin, eps = heads
    pool_ptr, block_table, table_stride, block_stride, value_offset = cache
    dim: gl.constexpr = k.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // dim, dim // 8], [4, 1], [1, 0])
    row = gl.arange(0, STAGE, gl.SliceLayout(1, layout))[:, None]
    if FUSED:
        d = gl.arange(0, dim, gl.SliceLayout(0, layout))[None, :]
        source = q_ptr + token.to(gl.int64) * q_stride
        offset = (KV_HEADS * GROUP + kv_head) * dim
        mask = d < dim
        key = norm_and_rotate(source, offset, k_norm, cos, sin, position, eps, d, mask, dim, ROTARY, HAS_NORM)
        key = key.to(k.dtype)
        value = gl.load(source + offset + KV_HEADS * dim + d)
        table = block_table + table_row.to(gl.int64) * table_stride
        block = gl.load(table + position // BLOCK_SIZE).to(gl.int64)
        cell = pool_ptr + kv_head * BLOCK_SIZE * dim + block * block_stride + position % BLOCK_SIZE * dim + d
        gl.store(cell, key)
        gl.store(cell + value_offset, value)
        k.store(gl.where(row == last, key, k.load(layout)))
        v.store(gl.where(row == last, value, v.load(layout)))
    v.store(gl.where(row <= last, v.load(layout), 0.0).to(v.dtype))
    fence_async_shared()
    barrier()
