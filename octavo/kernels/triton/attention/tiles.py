"""How a step's rows are cut into tiles, each some consecutive new tokens of a sequence x some of its heads."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.attention_sizes import LATENT_ROWS
from octavo.kernels.kv_layout import KV_ELEMENTS, KVDType
from octavo.kernels.triton.attention.latent_tile import piece_width
from octavo.kernels.triton.attention.memory import padded_dim

ROWS = 64  # of keys and values in a deterministic engine


@dataclass(frozen=True, slots=True)
class LatentTiling:
    """What a program has at most. keys: tokens at a time."""

    rows: int
    keys: int
    num_stages: int

    @classmethod
    def of(cls, element_bytes: int, capability: tuple[int, int]) -> LatentTiling:
        """For the shared memory of such a GPU, with latents of 512 numbers. element_bytes: the model computes in."""
        is_hopper = (9, 0) <= capability < (12, 0)
        if element_bytes > 2:
            return cls(16, 16, 2 if is_hopper else 1)
        return cls(LATENT_ROWS if is_hopper or capability == (8, 0) else 16, 32, 2 if is_hopper else 1)

    @property
    def num_warps(self) -> int:
        return warps_for(self.rows)


def warps_for(rows: int) -> int:
    return 4 if rows == 16 else 8


@dataclass(frozen=True, slots=True)
class FixedTiling:
    """How a layer is cut, whatever the step. group: heads of a tile. keys: at a time. pieces: of a latent."""

    rows: int
    group: int
    keys: int
    num_warps: int
    num_stages: int
    pieces: int = 1

    @classmethod
    def of(cls, layer: AttentionLayer, dtype: KVDType, capability: tuple[int, int]) -> FixedTiling:
        """dtype: the model computes in it."""
        size = KV_ELEMENTS[dtype].num_bytes
        if layer.latent is None:
            keys = min(64, (16 << 10) // (padded_dim(layer.head_dim) * size))
            return cls(ROWS, layer.num_heads // layer.num_kv_heads, keys, num_warps=4, num_stages=2)
        tile = LatentTiling.of(size, capability)
        group = next(heads for heads in range(tile.rows, 0, -1) if layer.num_heads % heads == 0)
        width = padded_dim(layer.value_dim)
        return cls(tile.rows, group, tile.keys, tile.num_warps, tile.num_stages, width // piece_width(width))


@triton.jit
def tile_of_step(tile, query_start_loc, seq_lens, num_seqs, QUERIES: tl.constexpr, IS_PLAIN: tl.constexpr):
    """A tile's sequence, first token in the step and its position, and number of queries, which may be 0 or less.

    The tiles of sequence s begin at query_start_loc[s] // QUERIES + s: a few stay empty, and nothing must be counted.
    """
    s = tile
    first = 0
    if not IS_PLAIN:
        s = 0
        above = num_seqs
        while above - s > 1:  # the last sequence whose tiles begin at or before this one
            middle = (s + above) // 2
            is_before = tl.load(query_start_loc + middle) // QUERIES + middle <= tile
            s = tl.where(is_before, middle, s)
            above = tl.where(is_before, above, middle)
        first = (tile - (tl.load(query_start_loc + s) // QUERIES + s)) * QUERIES
    start = tl.load(query_start_loc + s)
    num_queries = tl.load(query_start_loc + s + 1) - start
    length = tl.load(seq_lens + s)
    queries = tl.where(length > 0, tl.minimum(num_queries - first, QUERIES), 0)
    return s, start + first, length - num_queries + first, queries
