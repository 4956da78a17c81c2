"""Attention over latents (see `octavo/kernels/latent.py`): all heads share a key, whose first numbers are its value.

    tile      ROWS rows = some consecutive new tokens of a sequence x its heads, or one token x some of its heads
    share     of a tile's context, cut into equal parts where there are fewer tiles than the GPU has room for
    program   a tile and a share: latents are read once, for scores and for values
              the tile's only share:   the result
              one of several:          partial (max, sum, weighted latents) in float32; `_join_kernel` adds them up

One launch serves a step's decodes and its chunks.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import triton
import triton.language as tl

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.attention_sizes import LATENT_SHARES, latent_programs, latent_workspace
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.step import AttentionLaunch, DeviceStep
from octavo.kernels.kv_layout import KV_ELEMENTS, KVDType, KVLayout
from octavo.kernels.triton.attention.latent_tile import attend_to_latents, load_pieces, piece_width
from octavo.kernels.triton.attention.memory import AttentionMemory, LayerPool, padded_dim
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform
from octavo.kernels.triton.attention.scores import LOG2_E
from octavo.kernels.triton.attention.tiles import LatentTiling, tile_of_step, warps_for
from octavo.kernels.triton.chain import wait_for_previous

_LEAST_SHARE = tl.constexpr(128)  # tokens
_SHARES, _AT_ONCE = tl.constexpr(LATENT_SHARES), tl.constexpr(8)  # at most, and of those that are read together


class LatentAttention:
    """Implements `octavo.kernels.attention.AttentionBackend`, for latents alone."""

    decodes_alone = False
    short_chunk = 1
    decodes_in_parts: ClassVar[bool] = False  # it has partial results of its own
    scales_projections: ClassVar[bool] = False
    longest_captured: ClassVar[int | None] = None

    @staticmethod
    def why_not(layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU) -> list[str]:
        if layer.latent is None:
            return ["its kernels are for latents alone"]
        reasons = {
            "a window": layer.window is not None,
            "capped scores": layer.softcap is not None,
            "sinks": layer.sinks is not None,
        }
        return [f"it computes no {reason}" for reason, is_so in reasons.items() if is_so]

    def __init__(self, memory: AttentionMemory) -> None:
        shapes = latent_workspace(memory.layers, memory.gpu)
        rooms = [torch.empty(shape, dtype=torch.float32, device=memory.device) for shape in shapes.values()]
        self._memory, (self._values, self._max_sum) = memory, rooms

    @property
    def num_bytes(self) -> int:
        return self._values.nbytes + self._max_sum.nbytes

    def plan(self, step: DeviceStep) -> None:
        """For the places of new latents; its own kernels need no plan."""
        self._memory.make_plans(step)

    def decode(
        self, layer: AttentionLayer, transform: HeadTransform | None, otherwise: AttentionLaunch
    ) -> AttentionLaunch:
        assert transform is None, "latents are written alike in all steps"
        attend = self.prefill(layer, otherwise)

        def launch(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
            if not step.kind.has_chunks:
                attend(step, q, out)

        return launch

    def prefill(self, layer: AttentionLayer, otherwise: AttentionLaunch) -> AttentionLaunch:
        pools, parts, gpu = self._memory.pools, (self._values, self._max_sum), self._memory.gpu
        programs, chained = latent_programs(gpu), gpu.chains
        tiling = LatentTiling.of(KV_ELEMENTS[self._memory.dtype].num_bytes, gpu.capability)
        return lambda step, q, out: latent_attention(
            q, out, layer, pools[layer], parts, step, tiling, programs=programs, chained=chained
        )


def latent_attention(
    q: torch.Tensor,
    out: torch.Tensor,
    layer: AttentionLayer,
    pool: LayerPool,
    parts: tuple[torch.Tensor, torch.Tensor],
    step: DeviceStep,
    tiling: LatentTiling,
    *,
    programs: int,
    chained: bool = False,
) -> None:
    """Write all rows of `out` [T, Q * R] that belong to a sequence. q [T, Q * (R + P)]; the cache is up to date.
    programs: that are worth cutting contexts for."""
    heads, rank, num_seqs = layer.num_heads, layer.value_dim, len(step.seq_lens)
    is_plain = not step.kind.has_chunks and step.kind.decode_threshold == 1  # one new token each
    rows = min(tiling.rows, max(16, triton.next_power_of_2(heads))) if is_plain else tiling.rows
    own_heads = min(heads, rows)
    queries, head_tiles = rows // own_heads if not is_plain else 1, triton.cdiv(heads, own_heads)
    num_tiles = num_seqs if is_plain else len(step.positions) // queries + num_seqs
    shares = max(1, min(programs // (num_tiles * head_tiles), LATENT_SHARES))
    width = piece_width(padded_dim(rank))
    table, pieces = step.block_tables[layer.group], padded_dim(rank) // width
    where = (step.query_start_loc, step.seq_lens, num_seqs)
    shape = {
        "HEADS": heads, "OWN_HEADS": own_heads, "QUERIES": queries, "RANK": rank, "WIDTH": width, "PIECES": pieces,
        "IS_PLAIN": is_plain, "ROWS": rows, "CHAINED": chained, "launch_pdl": chained,
    }  # fmt: skip
    _attend_kernel[(num_tiles, head_tiles, shares)](
        q, out, pool.data, table, step.rows, *where, *parts, pool.scales, layer.scale * LOG2_E,
        q.stride(0), out.stride(0), table.stride(0), pool.block_stride, shares,
        ROTARY=layer.head_dim - rank, ROTARY_PAD=padded_dim(layer.head_dim - rank), BLOCK_SIZE=pool.block_size,
        KEYS=tiling.keys, **pool.codes, **shape, num_warps=warps_for(rows), num_stages=tiling.num_stages,
    )  # fmt: skip
    if shares > 1:
        _join_kernel[(num_tiles, head_tiles, rows)](out, *where, *parts, out.stride(0), shares, **shape, num_warps=4)


@triton.jit(do_not_specialize=["num_seqs", "table_stride", "shares"])
def _attend_kernel(
    q_ptr, out_ptr, pool, block_table, table_rows, query_start_loc, seq_lens, num_seqs, part_values, part_max_sum,
    scales, scale_log2, q_stride, out_stride, table_stride, block_stride, shares,
    HEADS: tl.constexpr, OWN_HEADS: tl.constexpr, QUERIES: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr,
    PIECES: tl.constexpr, IS_PLAIN: tl.constexpr, ROWS: tl.constexpr, ROTARY: tl.constexpr, ROTARY_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, HAS_CODES: tl.constexpr, IS_FLOAT: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    share = tl.program_id(2)
    wait_for_previous(CHAINED)
    s, token, first_position, queries = tile_of_step(
        tl.program_id(0), query_start_loc, seq_lens, num_seqs, QUERIES, IS_PLAIN
    )  # fmt: skip
    if queries <= 0:
        return
    end = first_position + queries
    begin, stop, num_shares = _share_of(end, share, shares)
    if share >= num_shares:
        return

    r = tl.arange(0, ROWS)
    p = tl.arange(0, ROTARY_PAD)
    head = tl.program_id(1) * OWN_HEADS + r % OWN_HEADS
    is_row = (r < queries * OWN_HEADS) & (head < HEADS)
    position = first_position + r // OWN_HEADS
    row = (token + r // OWN_HEADS).to(tl.int64)
    q_row = (q_ptr + row * q_stride + head * (RANK + ROTARY))[:, None]
    q = load_pieces(q_row, is_row, RANK, WIDTH, PIECES)
    q_turned = tl.load(q_row + RANK + p[None, :], mask=is_row[:, None] & (p < ROTARY)[None, :], other=0.0)
    table = block_table + tl.load(table_rows + s).to(tl.int64) * table_stride

    m, l, acc = attend_to_latents(
        q, q_turned, begin, stop, position, table, pool, block_stride, scales, scale_log2, RANK, WIDTH, PIECES, ROTARY,
        ROTARY_PAD, BLOCK_SIZE, KEYS, ROWS, HAS_CODES, IS_FLOAT,
    )  # fmt: skip
    at = _part_row(share, shares, ROWS) + r
    for i in tl.static_range(PIECES):
        d = i * WIDTH + tl.arange(0, WIDTH)
        mask = is_row[:, None] & (d < RANK)[None, :]
        if num_shares == 1:
            to = out_ptr + row[:, None] * out_stride + head[:, None] * RANK + d[None, :]
            tl.store(to, (acc[i] / l[:, None]).to(out_ptr.dtype.element_ty), mask=mask)
        else:
            tl.store(part_values + at[:, None] * RANK + d[None, :], acc[i], mask=mask)
    if num_shares > 1:
        tl.store(part_max_sum + at * 2, m, mask=is_row)
        tl.store(part_max_sum + at * 2 + 1, l, mask=is_row)


@triton.jit(do_not_specialize=["num_seqs", "shares"])
def _join_kernel(
    out_ptr, query_start_loc, seq_lens, num_seqs, part_values, part_max_sum, out_stride, shares,
    HEADS: tl.constexpr, OWN_HEADS: tl.constexpr, QUERIES: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr,
    PIECES: tl.constexpr, IS_PLAIN: tl.constexpr, ROWS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One program per row of a tile that was cut."""
    r = tl.program_id(2)
    wait_for_previous(CHAINED)
    _s, token, first_position, queries = tile_of_step(
        tl.program_id(0), query_start_loc, seq_lens, num_seqs, QUERIES, IS_PLAIN
    )  # fmt: skip
    head = tl.program_id(1) * OWN_HEADS + r % OWN_HEADS
    if (r >= queries * OWN_HEADS) | (head >= HEADS):
        return
    _begin, _stop, num_shares = _share_of(first_position + queries, 0, shares)
    if num_shares == 1:
        return
    shares_of_row = tl.arange(0, _SHARES)
    at = (_part_row(shares_of_row, shares, ROWS) + r) * 2
    m = tl.load(part_max_sum + at, mask=shares_of_row < num_shares, other=-float("inf"))
    top = tl.max(m, 0)
    l = tl.sum(tl.load(part_max_sum + at + 1, mask=shares_of_row < num_shares, other=0.0) * tl.exp2(m - top), 0)
    d = tl.arange(0, WIDTH * PIECES)
    acc = tl.zeros([WIDTH * PIECES], tl.float32)
    for first in range(0, num_shares, _AT_ONCE):
        share = first + tl.arange(0, _AT_ONCE)
        part = _part_row(share, shares, ROWS) + r
        weights = tl.exp2(tl.load(part_max_sum + part * 2, mask=share < num_shares, other=-float("inf")) - top)
        mask = (share < num_shares)[:, None] & (d < RANK)[None, :]
        values = tl.load(part_values + part[:, None] * RANK + d[None, :], mask=mask, other=0.0)
        acc += tl.sum(values * weights[:, None], 0)
    to = out_ptr + (token + r // OWN_HEADS).to(tl.int64) * out_stride + head * RANK + d
    tl.store(to, (acc / l).to(out_ptr.dtype.element_ty), mask=d < RANK)


@triton.jit
def _share_of(end, share, shares):
    """A share's tokens of a context that ends at `end`, and the number of shares that have any."""
    length = tl.maximum(tl.cdiv(tl.cdiv(end, shares), 32) * 32, _LEAST_SHARE)
    begin = share * length
    return begin, tl.minimum(begin + length, end), tl.cdiv(end, length)


@triton.jit
def _part_row(share, shares, ROWS: tl.constexpr):
    """The first row of a tile's partial results."""
    tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    return (tile * shares + share).to(tl.int64) * ROWS
