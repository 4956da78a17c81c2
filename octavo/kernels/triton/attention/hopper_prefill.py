"""Attention for chunks of new tokens, on Hopper: what `prefill_attention.py` does, closer to the machine.

    one persistent program per multiprocessor; its warps have roles:

    two loaders    a tile of queries and its keys, and its values ──copy engine──> shared memory, rings of tiles
    two computers  64 queries of the tile each; they take turns at the matrix units:
                       one runs the next keys' scores and the last keys' values, asynchronously,
                       while the other computes its softmax

A tile of keys is loaded block by block through the block table. Each block is a box that the copy engine puts in its
place, so paged keys cost no more than dense ones. A tile of queries walks its keys backwards: the masked keys, at the
diagonal, come first, and the long rest needs no mask. A piece of work is a tile of queries and a head; after its first
piece, a program fetches pieces by a counter. Beside the last values of a piece run the first scores of the next one, so
that short prompts, whose pieces are short, keep the matrix units busy, too (`hopper_prefill_compute.py`).

Over a cache of fp8 codes four more warps make tiles of halves of them, since a half holds e4m3 and one instruction
makes two; queries become halves, too, with all scales of their scores (`hopper_prefill_load.py`). The scale of values
is multiplied into results.

It takes what most models have: caches of 16 bits or fp8, heads of 64 or 128, no window and no cap;
`prefill_attention.py` takes the rest.

Warps with roles, turns, and softmax beside the products are from FlashAttention-3 (Shah et al., 2024).
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.triton.attention.hopper import PoolBoxes, boxes, make_barriers
from octavo.kernels.triton.attention.hopper_prefill_compute import compute
from octavo.kernels.triton.attention.hopper_prefill_load import (
    CODES_TILE,
    KV_TILE,
    ROWS,
    load_keys,
    load_values,
    make_numbers,
)
from octavo.kernels.triton.attention.memory import LayerPool
from octavo.kernels.triton.attention.plan import AttentionPlan
from octavo.kernels.triton.attention.scores import LOG2_E


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
        dim, has_codes = layer.head_dim, pool.codes["HAS_CODES"]
        tokens = min(pool.block_size, CODES_TILE.value if has_codes else KV_TILE.value)
        _kernel[(self._num_programs,)](
            boxes(q, [ROWS.value, dim]), self._pools.boxes(pool, tokens), out, block_table,
            plan.totals, plan.tiles, self._counter, pool.scales, pool.sinks, layer.scale * LOG2_E, out.stride(0),
            block_table.stride(0),
            pool.block_stride // dim, pool.value_offset // dim, pool.layer_row, pool.rows.shape[0],
            HEADS=layer.num_heads, GROUP=layer.num_heads // layer.num_kv_heads, D=dim, BLOCK_SIZE=pool.block_size,
            HAS_CODES=has_codes, HAS_SINKS=pool.has_sinks, STAGES=256 // dim, CHAINED=chained, launch_pdl=chained,
            num_warps=4, maxnreg=128 if has_codes else 168,
        )  # fmt: skip


@gluon.jit(do_not_specialize=["table_stride"])
def _kernel(
    q_boxes, pool_boxes, out_ptr, block_table, totals, tiles, counter, scales, sinks,
    scale_log2, out_stride, table_stride, block_rows, value_rows, layer_row, total_rows,
    HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, BLOCK_SIZE: gl.constexpr, HAS_CODES: gl.constexpr,
    HAS_SINKS: gl.constexpr, STAGES: gl.constexpr, CHAINED: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_boxes.dtype
    # two tiles of queries, each with one half per computing warpgroup; barriers signal that a place is full or free
    q = gl.allocate_shared_memory(dtype, [2 * 2, ROWS, D], q_boxes.layout)
    factor: gl.constexpr = gl.float16 if HAS_CODES else dtype
    k = gl.allocate_shared_memory(factor, [STAGES, KV_TILE, D], q_boxes.layout)
    v = gl.allocate_shared_memory(factor, [STAGES, KV_TILE, D], q_boxes.layout)
    records = gl.allocate_shared_memory(gl.int32, [2, 8], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    q_full = make_barriers(2, 1)
    q_free = make_barriers(2, 4 if HAS_CODES else 3)
    k_full = make_barriers(STAGES, 1)
    k_free = make_barriers(STAGES, 2)
    v_full = make_barriers(STAGES, 1)
    v_free = make_barriers(STAGES, 2)
    turns = make_barriers(2, 1)
    q_made = q_full  # queries can be multiplied: as they come, or as halves
    if HAS_CODES:
        q_made = make_barriers(2, 1)
    work = (records, q_full, q_free)
    pool = (pool_boxes, block_table, table_stride, block_rows, total_rows)
    halves = q if dtype == factor else q._reinterpret(factor, [2 * 2, ROWS, D], q_boxes.layout)
    computing = (halves, k, v, k_full, k_free, v_full, v_free, turns, q_made)
    result = (out_ptr, out_stride, scales, sinks, scale_log2)
    pieces = (totals, tiles, counter, layer_row)
    shape: gl.constexpr = (HEADS, GROUP, HAS_CODES, HAS_SINKS)
    if HAS_CODES:
        places: gl.constexpr = 256 // D
        k_codes = gl.allocate_shared_memory(pool_boxes.dtype, [places, CODES_TILE, D], pool_boxes.layout)
        v_codes = gl.allocate_shared_memory(pool_boxes.dtype, [places, CODES_TILE, D], pool_boxes.layout)
        k_come = make_barriers(places, 1)
        k_gone = make_barriers(places, 1)
        v_come = make_barriers(places, 1)
        v_gone = make_barriers(places, 1)
        codes = (k_codes, v_codes, k_come, k_gone, v_come, v_gone)
        queries = (q, halves, q_made, scales, scale_log2, GROUP)
        gl.warp_specialize(
            [
                (compute, (work, computing, result, 0, shape)),
                (compute, (work, computing, result, 1, shape)),
                (make_numbers, (work, queries, k, k_full, k_free, v, v_full, v_free, codes)),
                (load_keys, (work, q, q_boxes, k_codes, k_come, k_gone, pool, pieces, HEADS, GROUP, BLOCK_SIZE,
                             CHAINED)),
                (load_values, (work, v_codes, v_come, v_gone, pool, value_rows, BLOCK_SIZE)),
            ],
            [4, 4, 1, 1],
            [216, 56, 24, 24],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (compute, (work, computing, result, 0, shape)),
                (compute, (work, computing, result, 1, shape)),
                (load_keys, (work, q, q_boxes, k, k_full, k_free, pool, pieces, HEADS, GROUP, BLOCK_SIZE, CHAINED)),
                (load_values, (work, v, v_full, v_free, pool, value_rows, BLOCK_SIZE)),
            ],
            [4, 1, 1],
            [240, 24, 24],
        )  # fmt: skip
