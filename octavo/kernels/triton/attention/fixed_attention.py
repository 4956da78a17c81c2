"""Attention whose result for a token depends on that token's context alone: for a deterministic engine.

Other kernels cut a context by what else is in the step, and compute prompts otherwise than decodes. Here a context is
cut at absolute positions into parts, and each part's softmax is computed alone, in tiles of keys at absolute positions.
Parts are then folded in order, whoever computed them:

    tile       `rows` rows = some consecutive new tokens of a sequence x the query heads of one kv head, of latents x
               some of all heads
    program    a tile and one part   ──> partial result ──┐ folded in the order of parts
               or a tile and all parts, one after another ┘ the same fold: in registers

Prompts, chunks of them and decodes take the same tiles, however many rows are used. A key that a row does not see adds
exactly nothing to it, so it does not matter what other rows of its tile see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.attention_sizes import fixed_part_rows
from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.triton.attention.codes import unit
from octavo.kernels.triton.attention.fixed_part import attend_to, first_token, fold, part_of
from octavo.kernels.triton.attention.latent_tile import attend_to_latents, load_pieces
from octavo.kernels.triton.attention.memory import LayerPool, padded_dim
from octavo.kernels.triton.attention.scores import LOG2_E, sum_with_sink
from octavo.kernels.triton.attention.tiles import FixedTiling, tile_of_step
from octavo.kernels.triton.chain import wait_for_previous

MOST_PROGRAMS = 512  # of a kv head, if there are not more tiles: most of them find that their part has no tokens

_FOLD_COLUMNS = 128  # of a program


@dataclass(frozen=True, slots=True, eq=False)
class PartialResults:
    """Float32, flat: [part, kv head, row, dim] and [part, kv head, row, 2]. Layers share it."""

    values: torch.Tensor
    max_sum: torch.Tensor


def fixed_attention(
    q: torch.Tensor,
    out: torch.Tensor,
    layer: AttentionLayer,
    pool: LayerPool,
    partial: PartialResults,
    step: DeviceStep,
    *,
    tiling: FixedTiling,
    most_parts: int,
    chained: bool = False,
) -> None:
    """Write all rows of `out` [T, Q * D] that belong to a sequence, of latents [T, Q * R]. q [T, Q * D]; the cache is
    up to date. most_parts: of the longest context that the engine allows."""
    group, dim = tiling.group, layer.value_dim
    assert group <= tiling.rows, f"{group} query heads share a kv head; {tiling.rows} may"
    num_seqs, queries, rotary_dim = len(step.seq_lens), tiling.rows // group, layer.head_dim - dim
    is_plain = not step.kind.has_chunks and step.kind.decode_threshold == 1  # one new token each
    num_tiles = num_seqs if is_plain else len(step.positions) // queries + num_seqs
    part_rows, head_tiles = group if is_plain else tiling.rows, layer.num_heads // group
    room = fixed_part_rows(layer) // (num_tiles * head_tiles * part_rows)
    shares = max(1, min(room, MOST_PROGRAMS * layer.num_kv_heads // (num_tiles * head_tiles), most_parts))
    table = step.block_tables[layer.group]
    where = (step.rows, step.query_start_loc, step.seq_lens, num_seqs)
    shape = {
        "GROUP": group, "QUERIES": queries, "D": dim, "D_PAD": padded_dim(dim), "WINDOW": layer.window or 0,
        "IS_PLAIN": is_plain, "HAS_SINKS": pool.has_sinks, "CHAINED": chained, "launch_pdl": chained,
    }  # fmt: skip
    _attend_kernel[(head_tiles, num_tiles, shares)](
        q, out, pool.data, table, *where, partial.values, partial.max_sum, pool.scales, pool.sinks,
        layer.scale * LOG2_E, layer.softcap or 0.0,
        q.stride(0), out.stride(0), table.stride(0), pool.block_stride, pool.value_offset, part_rows, shares,
        PIECES=tiling.pieces, ROTARY=rotary_dim, ROTARY_PAD=padded_dim(max(1, rotary_dim)),
        BLOCK_SIZE=pool.block_size, KEYS=tiling.keys,
        ROWS=tiling.rows, SOFTCAP=layer.softcap is not None, **pool.codes, **shape, num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )  # fmt: skip
    if shares > 1:
        columns = min(padded_dim(dim), _FOLD_COLUMNS)
        _fold_kernel[(head_tiles, num_tiles, triton.cdiv(dim, columns))](
            out, *where, partial.values, partial.max_sum, pool.sinks, out.stride(0), part_rows, shares,
            ROWS=triton.next_power_of_2(part_rows), **shape | {"D_PAD": columns}, num_warps=4,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_seqs", "table_stride", "part_rows", "shares"])
def _attend_kernel(
    q_ptr, out_ptr, pool, block_table, rows, query_start_loc, seq_lens, num_seqs, part_values, part_max_sum,
    scales, sinks, scale_log2, softcap, q_stride, out_stride, table_stride, block_stride, value_offset, part_rows,
    shares,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, WINDOW: tl.constexpr,
    PIECES: tl.constexpr, ROTARY: tl.constexpr, ROTARY_PAD: tl.constexpr, IS_PLAIN: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr, SOFTCAP: tl.constexpr, HAS_CODES: tl.constexpr,
    IS_FLOAT: tl.constexpr, HAS_SINKS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """ROTARY: of latents, whose heads have no kv heads: these are then tiles of heads. PIECES: of a latent; else 1."""
    kv_head = tl.program_id(0)
    share = tl.program_id(2)
    wait_for_previous(CHAINED)
    s, token, first_position, queries = tile_of_step(
        tl.program_id(1), query_start_loc, seq_lens, num_seqs, QUERIES, IS_PLAIN
    )  # fmt: skip
    if queries <= 0:
        return
    end = first_position + queries
    begin = tl.maximum(first_position - WINDOW + 1, 0) if WINDOW else 0
    first_part = part_of(begin)
    parts = part_of(end - 1) + 1 - first_part
    is_cut = (parts > 1) & (parts <= shares)
    if share >= tl.where(is_cut, parts, 1):
        return

    r = tl.arange(0, ROWS)
    position = first_position + r // GROUP
    is_row = r < queries * GROUP
    row = (token + r // GROUP).to(tl.int64)[:, None]
    head = (kv_head * GROUP + r % GROUP)[:, None]
    q_row = q_ptr + row * q_stride + head * (D + ROTARY)
    WIDTH: tl.constexpr = D_PAD // PIECES
    q = load_pieces(q_row, is_row, D, WIDTH, PIECES)
    table = block_table + tl.load(rows + s).to(tl.int64) * table_stride
    if ROTARY:
        p = tl.arange(0, ROTARY_PAD)[None, :]
        q_turned = tl.load(q_row + D + p, mask=is_row[:, None] & (p < ROTARY), other=0.0)
    else:
        head_pool = pool + kv_head * BLOCK_SIZE * D
        scale_log2 *= unit(scales, kv_head, HAS_CODES, IS_FLOAT)
        value_unit = unit(scales, tl.num_programs(0) + kv_head, HAS_CODES, IS_FLOAT)
    m = tl.full([ROWS], -float("inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)
    acc = ()  # type: tuple[tl.tensor, ...]
    for _piece in tl.static_range(PIECES):
        acc += (tl.zeros([ROWS, WIDTH], tl.float32),)
    first_part += tl.where(is_cut, share, 0)
    for part in range(first_part, first_part + tl.where(is_cut, 1, parts)):
        start = tl.maximum(first_token(part), begin // KEYS * KEYS)
        stop = tl.minimum(first_token(part + 1), end)
        if ROTARY:
            part_m, part_l, part_acc = attend_to_latents(
                q, q_turned, start, stop, position, table, pool, block_stride, scales, scale_log2,
                D, WIDTH, PIECES, ROTARY, ROTARY_PAD, BLOCK_SIZE, KEYS, ROWS, HAS_CODES, IS_FLOAT,
            )  # fmt: skip
        else:
            part_m, part_l, gathered = attend_to(
                q[0], start, stop, end, position, table, head_pool, block_stride, value_offset, scale_log2, softcap,
                D, D_PAD, BLOCK_SIZE, KEYS, ROWS, WINDOW, SOFTCAP,
            )  # fmt: skip
            if HAS_CODES:  # before the fold, as parts of other programs are
                gathered *= value_unit
            part_acc = (gathered,)
        folded = ()  # type: tuple[tl.tensor, ...]
        for i in tl.static_range(PIECES):
            new_m, new_l, piece = fold(m, l, acc[i], part_m, part_l, part_acc[i])
            folded += (piece,)
        m, l, acc = new_m, new_l, folded

    at = ((tl.program_id(1) * shares + share) * tl.num_programs(0) + kv_head).to(tl.int64) * part_rows + r
    if is_cut:
        tl.store(part_max_sum + at * 2, m, mask=is_row)
        tl.store(part_max_sum + at * 2 + 1, l, mask=is_row)
    else:
        l = sum_with_sink(l, m, sinks, kv_head * GROUP + r % GROUP, is_row, HAS_SINKS)
    for n in tl.static_range(PIECES):
        d = n * WIDTH + tl.arange(0, WIDTH)
        mask = is_row[:, None] & (d < D)[None, :]
        if is_cut:
            tl.store(part_values + at[:, None] * D + d[None, :], acc[n], mask=mask)
        else:
            to = out_ptr + row * out_stride + head * D + d[None, :]
            tl.store(to, (acc[n] / l[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_seqs", "part_rows", "shares"])
def _fold_kernel(
    out_ptr, rows, query_start_loc, seq_lens, num_seqs, part_values, part_max_sum, sinks, out_stride, part_rows,
    shares,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, WINDOW: tl.constexpr,
    IS_PLAIN: tl.constexpr, ROWS: tl.constexpr, HAS_SINKS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Folds the parts of those tiles that were cut, D_PAD columns of them."""
    kv_head = tl.program_id(0)
    tile = tl.program_id(1)
    wait_for_previous(CHAINED)
    _s, token, first_position, queries = tile_of_step(tile, query_start_loc, seq_lens, num_seqs, QUERIES, IS_PLAIN)
    if queries <= 0:
        return
    begin = tl.maximum(first_position - WINDOW + 1, 0) if WINDOW else 0
    parts = part_of(first_position + queries - 1) + 1 - part_of(begin)
    if (parts == 1) | (parts > shares):
        return
    r = tl.arange(0, ROWS)
    d = tl.program_id(2) * D_PAD + tl.arange(0, D_PAD)
    is_row = r < queries * GROUP
    mask = is_row[:, None] & (d < D)[None, :]
    m = tl.full([ROWS], -float("inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_PAD], tl.float32)
    for part in range(parts):
        at = ((tile * shares + part) * tl.num_programs(0) + kv_head).to(tl.int64) * part_rows + r
        part_m = tl.load(part_max_sum + at * 2, mask=is_row, other=-float("inf"))
        part_l = tl.load(part_max_sum + at * 2 + 1, mask=is_row, other=0.0)
        part_acc = tl.load(part_values + at[:, None] * D + d[None, :], mask=mask, other=0.0)
        m, l, acc = fold(m, l, acc, part_m, part_l, part_acc)
    l = sum_with_sink(l, m, sinks, kv_head * GROUP + r % GROUP, is_row, HAS_SINKS)
    to = out_ptr + (token + r // GROUP).to(tl.int64)[:, None] * out_stride
    to += ((kv_head * GROUP + r % GROUP) * D)[:, None] + d[None, :]
    tl.store(to, (acc / l[:, None]).to(out_ptr.dtype.element_ty), mask=mask)
