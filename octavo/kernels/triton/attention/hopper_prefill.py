"""Attention for chunks of new tokens, on Hopper: what `prefill_attention.py` does, closer to the machine.

    one persistent program per multiprocessor; its warps have roles:

    two loaders    a tile of queries and its keys, and its values ──copy engine──> shared memory, rings of tiles
    two computers  64 queries of the tile each; they take turns at the matrix units:
                       one runs the next keys' scores and the last keys' values, asynchronously,
                       while the other computes its softmax

A tile of keys is loaded block by block through the block table. Each block is a box that the copy engine puts in its
place, so paged keys cost no more than dense ones. A tile of queries walks its keys backwards: the masked keys, at the
diagonal, come first, and the long rest needs no mask. A piece of work is a tile of queries and a head; after its first
piece, a program fetches pieces by a counter.

It takes what most models have: 16-bit caches, heads of 64 or 128, no window and no cap; `prefill_attention.py` takes
the rest.

Warps with roles, turns, and softmax beside the products are from FlashAttention-3 (Shah et al., 2024).
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
from octavo.kernels.cuda.attention_sizes import PREFILL_TILE
from octavo.kernels.triton.attention.hopper import (
    PoolBoxes,
    boxes,
    field,
    load_box,
    make_barriers,
    read_record,
    write_record,
)
from octavo.kernels.triton.attention.memory import LayerPool
from octavo.kernels.triton.attention.plan import AttentionPlan
from octavo.kernels.triton.attention.scores import LOG2_E

KV_TILE = gl.constexpr(128)
ROWS = gl.constexpr(PREFILL_TILE // 2)  # queries of a computing warpgroup

# the fields of a piece of work's record
NUM_TILES = gl.constexpr(0)  # tiles of keys to walk; 0: no more work
COLUMN = gl.constexpr(1)  # the head's first column of q and out
TOKEN = gl.constexpr(2)  # the first query's index in the step
NUM_QUERIES = gl.constexpr(3)  # the sequence's queries from the first one on: the tile's, or more
POSITION = gl.constexpr(4)  # the first query's position
SEQ_LEN = gl.constexpr(5)
TABLE_ROW = gl.constexpr(6)
KV_ROW = gl.constexpr(7)  # the row of the pool where the head's keys begin in block 0


class HopperPrefill:
    """The kernel, and the state that its launches share."""

    def __init__(self, num_multiprocessors: int, device: torch.device) -> None:
        self._num_programs = num_multiprocessors
        self._counter = torch.zeros(1, dtype=torch.int32, device=device)  # fetches; zero between launches
        self._pools = PoolBoxes()

    def prefill(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        layer: AttentionLayer,
        pool: LayerPool,
        plan: AttentionPlan,
        *,
        block_table: torch.Tensor,
        chained: bool = False,
    ) -> None:
        """As `prefill_attention`: write the rows of `out` [T, Q * D] that belong to sequences with chunks. The cache
        is up to date."""
        dim = layer.head_dim
        _kernel[(self._num_programs,)](
            boxes(q, [ROWS.value, dim]), self._pools.boxes(pool, pool.block_size), out, block_table,
            plan.totals, plan.tiles, self._counter, pool.sinks, layer.scale * LOG2_E, out.stride(0),
            block_table.stride(0),
            pool.block_stride // dim, pool.value_offset // dim, pool.layer_row, pool.rows.shape[0],
            HEADS=layer.num_heads, GROUP=layer.num_heads // layer.num_kv_heads, D=dim, BLOCK_SIZE=pool.block_size,
            HAS_SINKS=pool.has_sinks, STAGES=2 if dim == 128 else 4, CHAINED=chained, launch_pdl=chained, num_warps=4,
            maxnreg=168,
        )  # fmt: skip


@gluon.jit(do_not_specialize=["table_stride"])
def _kernel(
    q_boxes, pool_boxes, out_ptr, block_table, totals, tiles, counter, sinks,
    scale_log2, out_stride, table_stride, block_rows, value_rows, layer_row, total_rows,
    HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, BLOCK_SIZE: gl.constexpr, HAS_SINKS: gl.constexpr,
    STAGES: gl.constexpr, CHAINED: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_boxes.dtype
    # two tiles of queries, each with one half per computing warpgroup; barriers signal that a place is full or free
    q = gl.allocate_shared_memory(dtype, [2 * 2, ROWS, D], q_boxes.layout)
    k = gl.allocate_shared_memory(dtype, [STAGES, KV_TILE, D], q_boxes.layout)
    v = gl.allocate_shared_memory(dtype, [STAGES, KV_TILE, D], q_boxes.layout)
    records = gl.allocate_shared_memory(gl.int32, [2, 8], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    q_full = make_barriers(2, 1)
    q_free = make_barriers(2, 3)
    k_full = make_barriers(STAGES, 1)
    k_free = make_barriers(STAGES, 2)
    v_full = make_barriers(STAGES, 1)
    v_free = make_barriers(STAGES, 2)
    turns = make_barriers(2, 1)
    work = (records, q_full, q_free)
    pool = (pool_boxes, block_table, table_stride, block_rows, total_rows)
    computing = (q, k, v, k_full, k_free, v_full, v_free, turns)
    result = (out_ptr, out_stride, sinks, scale_log2)
    gl.warp_specialize(
        [
            (_compute, (work, computing, result, 0, HAS_SINKS)),
            (_compute, (work, computing, result, 1, HAS_SINKS)),
            (_load_keys, (work, q, q_boxes, k, k_full, k_free, pool, totals, tiles, counter, layer_row, HEADS, GROUP,
                          CHAINED)),
            (_load_values, (work, v, v_full, v_free, pool, value_rows)),
        ],
        [4, 1, 1],
        [240, 24, 24],
    )  # fmt: skip


@gluon.jit
def _load_keys(
    work, q, q_boxes, k, k_full, k_free, pool, totals, tiles, counter, layer_row,
    HEADS: gl.constexpr, GROUP: gl.constexpr, CHAINED: gl.constexpr,
):  # fmt: skip
    """Fetch pieces of work, starting with the program's own, describe them in `records`, and load their queries and
    keys. The last record is empty."""
    records, q_full, q_free = work
    pool_boxes, block_table, table_stride, block_rows, total_rows = pool
    dim: gl.constexpr = q.shape[2]
    num_work = gl.load(totals + 1) * HEADS
    turn = 0
    count = 0  # tiles of keys so far: gives the place in the ring and the round
    piece = gl.program_id(0)
    token, num_queries, position, seq_len, table_row = _look_up(piece, tiles, num_work, HEADS)
    if CHAINED:
        gdc_wait()
    while piece < num_work:
        head = piece % HEADS
        num_tiles = gl.cdiv(position + gl.minimum(num_queries, 2 * ROWS), KV_TILE)
        kv_row = layer_row + head // GROUP * pool_boxes.block_shape[0]

        slot = turn % 2
        mbarrier.wait(q_free.index(slot), (turn // 2 & 1) ^ 1)
        write_record(
            records.index(slot), num_tiles, head * dim, token, num_queries, position, seq_len, table_row, kv_row
        )
        mbarrier.expect(q_full.index(slot), 2 * ROWS * dim * 2)
        for part in gl.static_range(2):
            to = q.index(slot * 2 + part)
            load_box(q_boxes, [token + part * ROWS, head * dim], q_full.index(slot), to)

        table = block_table + table_row.to(gl.int64) * table_stride
        start = (num_tiles - 1) * KV_TILE
        _load_tile(k, k_full, k_free, count, pool_boxes, table, start, seq_len, block_rows, kv_row, total_rows)
        # look up the next piece while the rest of this one loads
        piece = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
        token, num_queries, position, next_len, table_row = _look_up(piece, tiles, num_work, HEADS)
        for i in range(1, num_tiles):
            start = (num_tiles - 1 - i) * KV_TILE
            _load_tile(k, k_full, k_free, count + i, pool_boxes, table, start, seq_len, block_rows, kv_row, total_rows)
        count += num_tiles
        seq_len = next_len
        turn += 1
    mbarrier.wait(q_free.index(turn % 2), (turn // 2 & 1) ^ 1)
    write_record(records.index(turn % 2), 0, 0, 0, 0, 0, 0, 0, 0)
    mbarrier.arrive(q_full.index(turn % 2), count=1)
    if piece == num_work + gl.num_programs(0) - 1:  # every program has made its last fetch
        gl.store(counter, 0)


@gluon.jit
def _look_up(piece, tiles, num_work, HEADS: gl.constexpr):
    """A piece's tile in the plan; any tile if there is no such piece."""
    record = tiles + gl.minimum(piece, num_work - 1) // HEADS * 8
    return gl.load(record), gl.load(record + 1), gl.load(record + 2), gl.load(record + 3), gl.load(record + 4)


@gluon.jit
def _load_values(work, v, v_full, v_free, pool, value_rows):
    records, q_full, q_free = work
    pool_boxes, block_table, table_stride, block_rows, total_rows = pool
    turn = 0
    count = 0
    record = read_record(records, q_full, turn)
    while field(record, NUM_TILES) > 0:
        mbarrier.arrive(q_free.index(turn % 2), count=1)
        num_tiles, seq_len = field(record, NUM_TILES), field(record, SEQ_LEN)
        table = block_table + field(record, TABLE_ROW).to(gl.int64) * table_stride
        row = field(record, KV_ROW) + value_rows
        for i in range(num_tiles):
            start = (num_tiles - 1 - i) * KV_TILE
            _load_tile(v, v_full, v_free, count + i, pool_boxes, table, start, seq_len, block_rows, row, total_rows)
        count += num_tiles
        turn += 1
        record = read_record(records, q_full, turn)


@gluon.jit
def _load_tile(ring, full, free, count, boxes, table, start, seq_len, block_rows, first_row, total_rows):
    """Load the tokens from `start` on into the ring's next tile, block by block. Past the sequence's end it asks for a
    row outside the pool, for which the copy engine writes zeros."""
    stages: gl.constexpr = ring.shape[0]
    block_size: gl.constexpr = boxes.block_shape[0]
    stage = count % stages
    mbarrier.wait(free.index(stage), (count // stages & 1) ^ 1)
    mbarrier.expect(full.index(stage), KV_TILE * ring.shape[2] * 2)
    for b in gl.static_range(KV_TILE // block_size):
        t = start + b * block_size
        block = gl.load(table + gl.where(t < seq_len, t // block_size, 0))
        row = gl.where(t < seq_len, block * block_rows + first_row, total_rows)
        to = ring.index(stage).slice(b * block_size, block_size)
        load_box(boxes, [row, 0], full.index(stage), to)


@gluon.jit
def _compute(work, computing, result, part: gl.constexpr, HAS_SINKS: gl.constexpr):
    records, q_full, q_free = work
    q, k, v, k_full, k_free, v_full, v_free, turns = computing
    out_ptr, out_stride, sinks, scale_log2 = result
    stages: gl.constexpr = k.shape[0]
    dim: gl.constexpr = q.shape[2]
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KV_TILE, 16])
    value_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, dim, 16])
    value_rows: gl.constexpr = gl.SliceLayout(1, value_layout)
    operand: gl.constexpr = gl.DotOperandLayout(0, value_layout, 2)
    first: gl.constexpr = part * ROWS
    turn = 0
    count = 0
    record = read_record(records, q_full, turn)
    while field(record, NUM_TILES) > 0:
        num_tiles, column, token = field(record, NUM_TILES), field(record, COLUMN), field(record, TOKEN)
        num_queries, position, seq_len = field(record, NUM_QUERIES), field(record, POSITION), field(record, SEQ_LEN)
        slot = turn % 2
        end = position + gl.minimum(num_queries, 2 * ROWS)
        row_position = position + first + gl.arange(0, ROWS, gl.SliceLayout(1, score_layout))

        # the last tile of keys, masked: some rows may see nothing of it
        start = (num_tiles - 1) * KV_TILE
        stage = count % stages
        mbarrier.wait(k_full.index(stage), count // stages & 1)
        _take_turn(turns, part, count)
        scores = _scores(q.index(slot * 2 + part), k.index(stage), score_layout)
        _pass_turn(turns, part)
        scores = warpgroup_mma_wait(0, deps=[scores])
        mbarrier.arrive(k_free.index(stage), count=1)
        scores = _mask(scores, start, row_position, end, score_layout)
        m = gl.max(scores, 1)
        base = gl.where(m == -float("inf"), 0.0, m)
        p = gl.exp2(scores * scale_log2 - (base * scale_log2)[:, None])
        l = gl.sum(p, 1)
        weights = gl.convert_layout(p.to(q.dtype), operand)
        acc = gl.zeros([ROWS, dim], gl.float32, value_layout)
        if seq_len < num_tiles * KV_TILE:
            mbarrier.wait(v_full.index(stage), count // stages & 1)
            _clear_past(v.index(stage), seq_len - start)

        for tile in range(1, num_tiles):
            count += 1
            next_stage = count % stages
            start = (num_tiles - 1 - tile) * KV_TILE
            mbarrier.wait(k_full.index(next_stage), count // stages & 1)
            _take_turn(turns, part, count)
            scores = _scores(q.index(slot * 2 + part), k.index(next_stage), score_layout)
            mbarrier.wait(v_full.index(stage), (count - 1) // stages & 1)
            acc = warpgroup_mma(weights, v.index(stage), acc, is_async=True)
            _pass_turn(turns, part)
            scores = warpgroup_mma_wait(1, deps=[scores])
            mbarrier.arrive(k_free.index(next_stage), count=1)
            if start + KV_TILE > position + first:
                scores = _mask(scores, start, row_position, end, score_layout)
            m_new = gl.maximum(m, gl.max(scores, 1))
            p = gl.exp2(scores * scale_log2 - (m_new * scale_log2)[:, None])
            alpha = gl.exp2((m - m_new) * scale_log2)
            l = l * alpha + gl.sum(p, 1)
            m = m_new
            acc, weights = warpgroup_mma_wait(0, deps=[acc, weights])
            mbarrier.arrive(v_free.index(stage), count=1)
            acc = acc * gl.convert_layout(alpha, value_rows)[:, None]
            weights = gl.convert_layout(p.to(q.dtype), operand)
            stage = next_stage

        mbarrier.arrive(q_free.index(slot), count=1)
        mbarrier.wait(v_full.index(stage), count // stages & 1)
        acc = warpgroup_mma(weights, v.index(stage), acc, is_async=True)
        acc, weights = warpgroup_mma_wait(0, deps=[acc, weights])
        mbarrier.arrive(v_free.index(stage), count=1)
        count += 1

        if HAS_SINKS:
            l += gl.exp2(gl.load(sinks + column // dim) * 1.4426950408889634 - m * scale_log2)
        i = first + gl.arange(0, ROWS, value_rows)
        d = gl.arange(0, dim, gl.SliceLayout(0, value_layout))
        to = out_ptr + (token + i).to(gl.int64)[:, None] * out_stride + column + d[None, :]
        inverse = 1.0 / gl.convert_layout(l, value_rows)
        gl.store(to, (acc * inverse[:, None]).to(q.dtype), mask=(i < num_queries)[:, None])
        turn += 1
        record = read_record(records, q_full, turn)


@gluon.jit
def _take_turn(turns, part: gl.constexpr, count):
    """Wait until the other warpgroup has launched its products of this tile (of the last tile, for the leader)."""
    mbarrier.wait(turns.index(part), (count & 1) ^ (1 - part))


@gluon.jit
def _pass_turn(turns, part: gl.constexpr):
    mbarrier.arrive(turns.index(1 - part), count=1)


@gluon.jit
def _scores(queries, keys, layout: gl.constexpr):
    """Start the [ROWS, KV_TILE] products, asynchronously."""
    nothing = gl.zeros([ROWS, KV_TILE], gl.float32, layout)
    return warpgroup_mma(queries, keys.permute((1, 0)), nothing, use_acc=False, is_async=True)


@gluon.jit
def _mask(scores, start, position, end, layout: gl.constexpr):
    t = start + gl.arange(0, KV_TILE, gl.SliceLayout(0, layout))
    seen = (t[None, :] <= position[:, None]) & (t < end)[None, :]
    return gl.where(seen, scores, -float("inf"))


@gluon.jit
def _clear_past(values, length):
    """Zero the rows from `length` on: a block's free slots may hold anything, and 0 * NaN is NaN. Both computing
    warpgroups do this and write the same zeros."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row = gl.arange(0, KV_TILE, gl.SliceLayout(1, layout))
    held = values.load(layout)
    values.store(gl.where((row < length)[:, None], held, 0.0).to(values.dtype))
    fence_async_shared()
