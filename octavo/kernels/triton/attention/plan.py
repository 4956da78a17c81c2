"""The step's attention plan: each sequence's work cut into items of similar size, on the device, once per step.

    seq_lens         [ 600 | 70 | 20000 ]         target 192: 3, 1 and 32 parts; 32 is the maximum
    decode items     s2 0-640, s2 640-1280, ... s2 19840-20000, s0 0-256, s0 256-512, s0 512-600, s1 0-70

The programs of a persistent attention kernel fetch one item after another, so a long sequence beside short ones costs
only what its tokens cost. A sequence is cut into parts of equal length, as near to a target as possible: a small piece
left over would cost a start and a partial result for little work. The target depends on the number of sequences.
`MAX_PARTITIONS` limits the parts of a sequence, and so the partial results. Longer items come first, so that the
programs finish at about the same time.

An item names a sequence, whose block table is read, and a range of its tokens. It serves all new tokens of the
sequence: one, or up to the step's `decode_threshold`, whose queries the attention kernel packs into a tile. Partial
results then need that many times the room, so fewer parts are allowed.

Sequences with more new tokens get tiles of `PREFILL_TILE` queries instead, the last (longest) first.

Tensors of a plan, all int32 on the device:
    totals        [2]              decode items, prefill tiles
    items         [max_items, 8]   a record of eight numbers: the sequence's row of the block table, the index in the
                                   step of its first new token, the position of its last one, the item's first token
                                   and its end, the sequence's number of items, the item's part, and, for a threshold
                                   above 1, the sequence's number of new tokens
    item_ranges   [S, 2]           a sequence's first part and number of parts: the place of its partial results
    tiles         [max_tiles, 8]   a record, five of eight numbers used: the first query's index in the step, the
                                   sequence's queries from there on, the first one's position, the sequence's length,
                                   its row of the block table
    slots         [T]              the place of each token's key and value: block id * block size + offset; -1: none
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.cuda.attention_sizes import MAX_PARTITIONS, PREFILL_TILE, attention_plan
from octavo.kernels.triton.chain import wait_for_previous

_SEQS = [32 << 3 * i for i in range(8)]  # few sizes: each is compiled at first use, while a user waits
_STEP = tl.constexpr(64)  # a part's length is a multiple of what attention kernels read at once


def target_partition(num_seqs: int) -> int:
    """The target length of an item, measured on an H100 with eight kv heads: few sequences need many items to fill the
    chip; with many sequences, an item's own cost (its start and its partial result) matters."""
    return next((target for most, target in ((32, 192), (64, 384)) if num_seqs <= most), 768)


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """The device tensors of a plan for all layers that share block table and window."""

    totals: torch.Tensor
    items: torch.Tensor
    item_ranges: torch.Tensor
    tiles: torch.Tensor
    slots: torch.Tensor

    @classmethod
    def allocate(cls, max_num_seqs: int, max_num_tokens: int, device: torch.device) -> AttentionPlan:
        """Room for any step within the limits."""

        shapes = attention_plan(max_num_seqs, max_num_tokens)
        return cls(**{name: torch.zeros(shape, dtype=torch.int32, device=device) for name, shape in shapes.items()})


def make_plan(
    plan: AttentionPlan,
    *,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    window: int | None = None,
    decode_threshold: int = 1,
    chained: bool = False,
) -> None:
    """Fill `plan` for the step. A sequence of length 0 is padding: it gets no items, and slots of -1, as do tokens
    beyond the last sequence's."""
    num_seqs = len(seq_lens)
    room = len(plan.items) // (num_seqs * decode_threshold)  # each partial result is of one query row
    _plan_kernel[(num_seqs,)](
        plan.totals, plan.items, plan.item_ranges, plan.tiles, plan.slots,
        query_start_loc, seq_lens, positions, rows, block_table, block_table.stride(0), num_seqs, len(positions),
        WINDOW=window or 0, BLOCK_SIZE=block_size, SEQS=next(size for size in _SEQS if num_seqs <= size),
        TARGET=target_partition(num_seqs), MAX_PARTITIONS=MAX_PARTITIONS, TILE=PREFILL_TILE,
        THRESHOLD=decode_threshold, MOST_PARTS=min(MAX_PARTITIONS, 1 << (room.bit_length() - 1)),
        CHAINED=chained, launch_pdl=chained, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride", "num_seqs", "num_tokens"])
def _plan_kernel(
    totals, items, item_ranges, tiles, slots,
    query_start_loc, seq_lens, positions, rows, block_table, table_stride, num_seqs, num_tokens,
    WINDOW: tl.constexpr, BLOCK_SIZE: tl.constexpr, SEQS: tl.constexpr,
    TARGET: tl.constexpr, MAX_PARTITIONS: tl.constexpr, TILE: tl.constexpr, THRESHOLD: tl.constexpr,
    MOST_PARTS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One program per sequence: it counts the items before its own, then writes its own."""
    s = tl.program_id(0)
    wait_for_previous(CHAINED)

    all_s = tl.arange(0, SEQS)
    live = all_s < num_seqs
    all_len = tl.load(seq_lens + all_s, mask=live, other=0)
    all_queries = tl.load(query_start_loc + all_s + 1, mask=live, other=0) - tl.load(
        query_start_loc + all_s, mask=live, other=0
    )
    all_seen = all_len if THRESHOLD == 1 else all_len - all_queries + 1  # up to the first new token
    all_begin = tl.maximum(all_seen - WINDOW, 0) // _STEP * _STEP if WINDOW else all_len * 0
    num_parts = tl.minimum(tl.maximum((all_len - all_begin + TARGET // 2) // TARGET, 1), MOST_PARTS)
    all_part = tl.maximum(tl.cdiv(tl.cdiv(all_len - all_begin, num_parts), _STEP), 1) * _STEP
    decodes = (all_queries <= THRESHOLD if THRESHOLD > 1 else all_queries == 1) & (all_len > 0)
    all_items = tl.where(decodes, tl.cdiv(all_len - all_begin, all_part), 0)
    all_tiles = tl.where((all_queries > THRESHOLD) & (all_len > 0), tl.cdiv(all_queries, TILE), 0)

    me = all_s == s
    seq_len = tl.sum(tl.where(me, all_len, 0))
    part = tl.sum(tl.where(me, all_part, 0))
    num_items = tl.sum(tl.where(me, all_items, 0))
    num_tiles = tl.sum(tl.where(me, all_tiles, 0))
    first = tl.sum(tl.where(me, all_begin, 0))
    before = (all_part > part) | ((all_part == part) & (all_s < s))
    part_start = tl.sum(tl.where(all_s < s, all_items, 0))
    item_start = tl.sum(tl.where(before, all_items, 0))
    tile_start = tl.sum(tl.where(all_s < s, all_tiles, 0))

    if s == 0:
        tl.store(totals, tl.sum(all_items))
        tl.store(totals + 1, tl.sum(all_tiles))
    token_start = tl.load(query_start_loc + s)
    token_end = tl.load(query_start_loc + s + 1)
    table_row = tl.load(rows + s)
    tl.store(item_ranges + 2 * s, part_start)
    tl.store(item_ranges + 2 * s + 1, num_items)

    j = tl.arange(0, MAX_PARTITIONS)
    mine = j < num_items
    begin = first + j * part
    item = items + (item_start + j) * 8
    tl.store(item, table_row, mask=mine)
    tl.store(item + 1, token_start, mask=mine)
    tl.store(item + 2, seq_len - 1, mask=mine)
    seen = seq_len if THRESHOLD == 1 else seq_len - (token_end - token_start) + 1
    tl.store(item + 3, tl.maximum(begin, seen - WINDOW) if WINDOW else begin, mask=mine)
    tl.store(item + 4, tl.minimum(begin + part, seq_len), mask=mine)
    tl.store(item + 5, num_items, mask=mine)
    tl.store(item + 6, part_start + j, mask=mine)
    if THRESHOLD > 1:
        tl.store(item + 7, token_end - token_start, mask=mine)

    chunk = tl.arange(0, 256)
    if s == 0:
        for t in range(tl.load(query_start_loc + num_seqs), num_tokens, 256):
            tl.store(slots + t + chunk, -1, mask=t + chunk < num_tokens)
    for t in range(0, num_tiles, 256):
        tile = tiles + (tile_start + t + chunk) * 8
        mask = t + chunk < num_tiles
        first_query = (num_tiles - 1 - t - chunk) * TILE
        num_queries = token_end - token_start
        tl.store(tile, token_start + first_query, mask=mask)
        tl.store(tile + 1, num_queries - first_query, mask=mask)
        tl.store(tile + 2, seq_len - num_queries + first_query, mask=mask)
        tl.store(tile + 3, seq_len, mask=mask)
        tl.store(tile + 4, table_row, mask=mask)

    table = block_table + table_row.to(tl.int64) * table_stride
    for t in range(token_start, token_end, 256):
        inside = t + chunk < token_end
        mask = inside & (seq_len > 0)
        position = tl.load(positions + t + chunk, mask=mask, other=0)
        block = tl.load(table + position // BLOCK_SIZE, mask=mask, other=0)
        slot = tl.where(mask, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)  # padding has those of an earlier step
        tl.store(slots + t + chunk, slot, mask=inside)
