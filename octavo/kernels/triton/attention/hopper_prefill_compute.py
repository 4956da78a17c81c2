"""Computes what `hopper_prefill_load.py` loads: scores, softmax and values of 64 queries, tile of keys by tile of keys.

    matrix units   QK 3 | PV 4 ...           QK 2 | PV 3 ...      QK 1 of the next piece | PV 2, the last ...
    arithmetic               softmax 3                  softmax 2                  softmax 1, results to memory

The other computing warpgroup's products fill the gaps: they take turns. Of heads of 128 over a cache of numbers the
queries stay in registers, so that scores read less shared memory: a card at its power limit is faster by it. With
smaller heads that does not pay, and numbers made of codes leave no registers for it.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from octavo.kernels.triton.attention.hopper import field, read_record
from octavo.kernels.triton.attention.hopper_prefill_load import (
    COLUMN,
    KV_TILE,
    NUM_QUERIES,
    NUM_TILES,
    POSITION,
    ROWS,
    SEQ_LEN,
    TOKEN,
)


@gluon.jit
def compute(work, computing, result, part: gl.constexpr, shape: gl.constexpr):
    """Scores, softmax and values of one part's `ROWS` queries of each piece of work, until an empty record comes."""
    records, q_full, q_free = work
    q, k, v, k_full, k_free, v_full, v_free, turns, q_made = computing
    scale_log2 = result[4]
    has_codes: gl.constexpr = shape[2]
    stages: gl.constexpr = k.shape[0]
    dim: gl.constexpr = q.shape[2]
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KV_TILE, 16])
    value_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, dim, 16])
    value_rows: gl.constexpr = gl.SliceLayout(1, value_layout)
    operand: gl.constexpr = gl.DotOperandLayout(0, value_layout, 2)
    query_operand: gl.constexpr = gl.DotOperandLayout(0, score_layout, 2)
    keeps_queries: gl.constexpr = dim == 128 and not has_codes
    if has_codes:
        scale_log2 = 1.0  # its queries bring it
    turn = 0
    count = 0
    record = read_record(records, q_full, turn)
    m = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, score_layout))
    l = m
    weights = gl.zeros([ROWS, KV_TILE], q.dtype, operand)
    if field(record, NUM_TILES) > 0:
        mbarrier.wait(k_full.index(0), 0)
        _take_turn(turns, part, count)
        scores = _scores(_queries(q, q_made, turn, part, has_codes), k.index(0), score_layout)
        _pass_turn(turns, part)
        scores = warpgroup_mma_wait(0, deps=[scores])
        mbarrier.arrive(k_free.index(0), count=1)
        m, l, p = _begin(scores, record, part, scale_log2, score_layout)
        weights = gl.convert_layout(p.to(q.dtype), operand)

    while field(record, NUM_TILES) > 0:  # m, l and weights are those of its last tile of keys
        num_tiles, position = field(record, NUM_TILES), field(record, POSITION)
        end = position + gl.minimum(field(record, NUM_QUERIES), 2 * ROWS)
        row_position = position + part * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, score_layout))
        stage = count % stages
        acc = gl.zeros([ROWS, dim], gl.float32, value_layout)
        if not has_codes:  # noqa: SIM102  # decided when it is compiled
            if field(record, SEQ_LEN) < num_tiles * KV_TILE:
                mbarrier.wait(v_full.index(stage), count // stages & 1)
                _clear_past(v.index(stage), field(record, SEQ_LEN) - (num_tiles - 1) * KV_TILE)
        in_memory = q.index(turn % 2 * 2 + part)
        queries = in_memory
        if keeps_queries:
            queries = in_memory.load(query_operand)

        for tile in range(1, num_tiles):
            count += 1
            next_stage = count % stages
            start = (num_tiles - 1 - tile) * KV_TILE
            mbarrier.wait(k_full.index(next_stage), count // stages & 1)
            _take_turn(turns, part, count)
            scores = _scores(queries, k.index(next_stage), score_layout)
            mbarrier.wait(v_full.index(stage), (count - 1) // stages & 1)
            acc = warpgroup_mma(weights, v.index(stage), acc, is_async=True)
            _pass_turn(turns, part)
            scores = warpgroup_mma_wait(1, deps=[scores])
            mbarrier.arrive(k_free.index(next_stage), count=1)
            if start + KV_TILE > position + part * ROWS:
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
        mbarrier.arrive(q_free.index(turn % 2), count=1)

        # the last values, and beside them the next piece's first scores
        turn += 1
        count += 1
        following = read_record(records, q_full, turn)
        mbarrier.wait(v_full.index(stage), (count - 1) // stages & 1)
        if field(following, NUM_TILES) > 0:
            next_stage = count % stages
            mbarrier.wait(k_full.index(next_stage), count // stages & 1)
            next_queries = _queries(q, q_made, turn, part, has_codes)
            _take_turn(turns, part, count)
            scores = _scores(next_queries, k.index(next_stage), score_layout)
            acc = warpgroup_mma(weights, v.index(stage), acc, is_async=True)
            _pass_turn(turns, part)
            scores = warpgroup_mma_wait(1, deps=[scores])
            mbarrier.arrive(k_free.index(next_stage), count=1)
            next_m, next_l, p = _begin(scores, following, part, scale_log2, score_layout)
            acc, weights = warpgroup_mma_wait(0, deps=[acc, weights])
            mbarrier.arrive(v_free.index(stage), count=1)
            _store(acc, m, l, result, record, part, shape, value_layout, scale_log2)
            m, l = next_m, next_l
            weights = gl.convert_layout(p.to(q.dtype), operand)
        else:
            acc = warpgroup_mma(weights, v.index(stage), acc, is_async=True)
            acc, weights = warpgroup_mma_wait(0, deps=[acc, weights])
            mbarrier.arrive(v_free.index(stage), count=1)
            _store(acc, m, l, result, record, part, shape, value_layout, scale_log2)
        record = following


@gluon.jit
def _queries(q, q_made, turn, part: gl.constexpr, HAS_CODES: gl.constexpr):
    """The part's queries of the turn-th piece; over codes, once they are halves."""
    if HAS_CODES:
        mbarrier.wait(q_made.index(turn % 2), turn // 2 & 1)
    return q.index(turn % 2 * 2 + part)


@gluon.jit
def _begin(scores, record, part: gl.constexpr, scale_log2, layout: gl.constexpr):
    """The largest score, the sum and the weights of a piece's last tile of keys, of which some rows may see nothing."""
    position = field(record, POSITION)
    end = position + gl.minimum(field(record, NUM_QUERIES), 2 * ROWS)
    row_position = position + part * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    scores = _mask(scores, (field(record, NUM_TILES) - 1) * KV_TILE, row_position, end, layout)
    m = gl.max(scores, 1)
    base = gl.where(m == -float("inf"), 0.0, m)
    p = gl.exp2(scores * scale_log2 - (base * scale_log2)[:, None])
    return m, gl.sum(p, 1), p


@gluon.jit
def _store(
    acc, m, l, result, record, part: gl.constexpr, shape: gl.constexpr, layout: gl.constexpr, scale_log2
):  # fmt: skip
    """Write the part's rows of a piece to `out`."""
    out_ptr, out_stride, scales, sinks, _ = result
    heads: gl.constexpr = shape[0]
    group: gl.constexpr = shape[1]
    dim: gl.constexpr = acc.shape[1]
    column = field(record, COLUMN)
    value_scale = 1.0
    if shape[2]:  # codes
        value_scale = gl.load(scales + heads // group + column // dim // group)
    if shape[3]:  # sinks
        l += gl.exp2(gl.load(sinks + column // dim) * 1.4426950408889634 - m * scale_log2)
    inverse = value_scale / gl.convert_layout(l, gl.SliceLayout(1, layout))
    i = part * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    d = gl.arange(0, dim, gl.SliceLayout(0, layout))
    to = out_ptr + (field(record, TOKEN) + i).to(gl.int64)[:, None] * out_stride + column + d[None, :]
    to = gl.multiple_of(to, [1, 16])  # bytes; a warp's role forgets what a kernel knows of its arguments
    values = (acc * inverse[:, None]).to(out_ptr.dtype.element_ty)
    gl.store(to, values, mask=(i < field(record, NUM_QUERIES))[:, None])


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
