"""Loads what `hopper_prefill.py` multiplies: tiles of queries, keys and values; and makes numbers of 8-bit codes.

a cache of numbers    copy engine ──> rings of tiles
a cache of codes      copy engine ──> tiles of codes ──four warps──> rings of tiles, as halves
                      copy engine ──> queries ──the same, times their scales──> halves, in their place
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.language.extra.cuda import gdc_wait

from octavo.kernels.cuda.attention_sizes import PREFILL_TILE
from octavo.kernels.triton.attention.hopper import field, load_box, read_record, write_record

KV_TILE = gl.constexpr(128)
ROWS = gl.constexpr(PREFILL_TILE // 2)  # queries of a computing warpgroup

CODES_TILE = gl.constexpr(64)  # tokens whose codes are on their way together
ROWS_AT_ONCE = gl.constexpr(32)  # of these, that become numbers
QUERIES_AT_ONCE = gl.constexpr(16)

_HALVES = gl.constexpr("""{
    .reg .b16 low, high;
    mov.b32 {low, high}, $2;
    cvt.rn.f16x2.e4m3x2 $0, low;
    cvt.rn.f16x2.e4m3x2 $1, high;
}""")

# the fields of a piece of work's record
NUM_TILES = gl.constexpr(0)  # tiles of keys to walk; 0: no more work
COLUMN = gl.constexpr(1)  # the head's first column of q and out
TOKEN = gl.constexpr(2)  # the first query's index in the step
NUM_QUERIES = gl.constexpr(3)  # the sequence's queries from the first one on: the tile's, or more
POSITION = gl.constexpr(4)  # the first query's position
SEQ_LEN = gl.constexpr(5)
TABLE_ROW = gl.constexpr(6)
KV_ROW = gl.constexpr(7)  # the row of the pool where the head's keys begin in block 0


@gluon.jit
def load_keys(
    work, q, q_boxes, k, k_full, k_free, pool, pieces,
    HEADS: gl.constexpr, GROUP: gl.constexpr, BLOCK_SIZE: gl.constexpr, CHAINED: gl.constexpr,
):  # fmt: skip
    """Fetch pieces of work, starting with the program's own, describe them in `records`, and load their queries and
    keys. The last record is empty."""
    records, q_full, q_free = work
    pool_boxes, block_table, table_stride, block_rows, total_rows = pool
    totals, tiles, counter, layer_row = pieces
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
        kv_row = layer_row + head // GROUP * BLOCK_SIZE

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
        from_pool = (pool_boxes, table, seq_len, block_rows, kv_row, total_rows)
        _load_tile(k, k_full, k_free, count, start, from_pool, BLOCK_SIZE)
        # look up the next piece while the rest of this one loads
        piece = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
        token, num_queries, position, next_len, table_row = _look_up(piece, tiles, num_work, HEADS)
        for i in range(1, num_tiles):
            start = (num_tiles - 1 - i) * KV_TILE
            _load_tile(k, k_full, k_free, count + i, start, from_pool, BLOCK_SIZE)
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
def load_values(work, v, v_full, v_free, pool, value_rows, BLOCK_SIZE: gl.constexpr):
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
        from_pool = (pool_boxes, table, seq_len, block_rows, row, total_rows)
        for i in range(num_tiles):
            start = (num_tiles - 1 - i) * KV_TILE
            _load_tile(v, v_full, v_free, count + i, start, from_pool, BLOCK_SIZE)
        count += num_tiles
        turn += 1
        record = read_record(records, q_full, turn)


@gluon.jit
def _load_tile(ring, full, free, count, start, from_pool, BLOCK_SIZE: gl.constexpr):
    """Load the tokens from `start` on into the ring's next places, box by box. Past the sequence's end it asks for a
    row outside the pool, for which the copy engine writes zeros."""
    boxes, table, seq_len, block_rows, first_row, total_rows = from_pool
    places: gl.constexpr = ring.shape[0]
    tokens: gl.constexpr = ring.shape[1]
    box: gl.constexpr = boxes.block_shape[0]
    parts: gl.constexpr = KV_TILE // tokens
    for part in gl.static_range(parts):
        turn = count * parts + part
        place = turn % places
        mbarrier.wait(free.index(place), (turn // places & 1) ^ 1)
        mbarrier.expect(full.index(place), tokens * ring.shape[2] * (ring.dtype.primitive_bitwidth // 8))
        for b in gl.static_range(tokens // box):
            t = start + part * tokens + b * box
            block = gl.load(table + gl.where(t < seq_len, t // BLOCK_SIZE, 0))
            row = gl.where(t < seq_len, block * block_rows + first_row + t % BLOCK_SIZE, total_rows)
            load_box(boxes, [row, 0], full.index(place), ring.index(place).slice(b * box, box))


@gluon.jit
def make_numbers(work, queries, k, k_full, k_free, v, v_full, v_free, codes):
    """Halves of queries, and of the tiles of keys and values whose codes come, one after the other."""
    records, q_full, q_free = work
    k_codes, v_codes, k_come, k_gone, v_come, v_gone = codes
    turn = 0
    count = 0
    record = read_record(records, q_full, turn)
    while field(record, NUM_TILES) > 0:
        num_tiles, column = field(record, NUM_TILES), field(record, COLUMN)
        _make_queries(queries, turn % 2, column)
        mbarrier.arrive(q_free.index(turn % 2), count=1)
        for i in range(num_tiles):
            _make_tile(k_codes, k_come, k_gone, k, k_full, k_free, count + i)
            _make_tile(v_codes, v_come, v_gone, v, v_full, v_free, count + i)
        count += num_tiles
        turn += 1
        record = read_record(records, q_full, turn)


@gluon.jit
def _make_queries(queries, slot, column):
    """In their place, times the scales of their scores. What is too large for a half becomes the largest."""
    q, halves, q_made, scales, scale, group = queries
    dim: gl.constexpr = q.shape[2]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // dim, dim // 8], [4, 1], [1, 0])
    factor = scale * gl.load(scales + column // dim // group)
    for part in gl.static_range(2):
        for i in gl.static_range(ROWS // QUERIES_AT_ONCE):
            x = q.index(slot * 2 + part).slice(i * QUERIES_AT_ONCE, QUERIES_AT_ONCE).load(layout).to(gl.float32)
            x *= factor
            x = gl.where(x > 65504.0, 65504.0, gl.where(x < -65504.0, -65504.0, x))
            halves.index(slot * 2 + part).slice(i * QUERIES_AT_ONCE, QUERIES_AT_ONCE).store(x.to(gl.float16))
    fence_async_shared()
    mbarrier.arrive(q_made.index(slot), count=1)


@gluon.jit
def _make_tile(codes, come, gone, ring, full, free, count):
    """What a block's free slots hold become numbers, too: a cache holds no code of NaN."""
    dim: gl.constexpr = ring.shape[2]
    parts: gl.constexpr = KV_TILE // CODES_TILE
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // dim, dim // 8], [4, 1], [1, 0])
    stage = count % ring.shape[0]
    mbarrier.wait(free.index(stage), (count // ring.shape[0] & 1) ^ 1)
    for part in gl.static_range(parts):
        turn = count * parts + part
        place = turn % codes.shape[0]
        mbarrier.wait(come.index(place), turn // codes.shape[0] & 1)
        for i in gl.static_range(CODES_TILE // ROWS_AT_ONCE):
            held = codes.index(place).slice(i * ROWS_AT_ONCE, ROWS_AT_ONCE).load(layout)
            to = ring.index(stage).slice(part * CODES_TILE + i * ROWS_AT_ONCE, ROWS_AT_ONCE)
            to.store(gl.inline_asm_elementwise(_HALVES, "=r,=r,r", [held], dtype=gl.float16, is_pure=True, pack=4))
        mbarrier.arrive(gone.index(place), count=1)
    fence_async_shared()
    mbarrier.arrive(full.index(stage), count=1)
