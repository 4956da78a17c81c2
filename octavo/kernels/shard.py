"""Shard: how the ranks of a model share a parameter.

column       each rank has some rows of [out, in], and so some of a layer's outputs
row          each rank has some columns, and so some of its inputs; the ranks' products are then added up
heads        rows, as whole attention heads: a rank has the key and value heads that its query heads read
experts      each rank has some of a stack's experts
replicated   every rank has all of it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ShardKind = Literal["column", "row", "heads", "experts", "replicated"]


@dataclass(frozen=True, slots=True)
class Shard:
    """The shared dimension is a row of segments (Phi's gate and up in one matrix are two), each of so many units: rows,
    columns, heads or experts. Ranks share every segment as they share `units`."""

    kind: ShardKind = "replicated"
    units: int = 1
    segments: tuple[int, ...] = (1,)

    @classmethod
    def columns(cls, size: int, num_segments: int = 1) -> Shard:
        """Of `size` outputs altogether."""
        return cls("column", size // num_segments, (size // num_segments,) * num_segments)

    @classmethod
    def rows(cls, units: int) -> Shard:
        """Of inputs in so many units."""
        return cls("row", units, (units,))

    @classmethod
    def heads(cls, num_heads: int, *segments: int) -> Shard:
        """segments: heads of each kind, in the order in which they lie there."""
        return cls("heads", num_heads, segments)

    @property
    def of_outputs(self) -> Shard:
        """How ranks share what has one entry an output: a bias."""
        return REPLICATED if self.kind == "row" else self

    def slices(self, shape: tuple[int, ...], rank: int, num_ranks: int) -> tuple[int, tuple[slice, ...]]:
        """The dimension that is shared, and what the rank has of it, of a tensor of that shape: the parameter, or what
        belongs to it, such as scales for its rows or for blocks of its columns."""
        dimension = len(shape) - 1 if self.kind == "row" else 0
        if self.kind == "replicated":
            return dimension, (slice(0, shape[0]),)
        begin, end = rank * self.units // num_ranks, (rank + 1) * self.units // num_ranks
        slices, start = [], 0
        for segment in self.segments:
            first, last = start + begin * segment // self.units, start + -(-end * segment // self.units)
            slices.append(slice(self._place(first, shape[dimension]), self._place(last, shape[dimension])))
            start += segment
        return dimension, tuple(slices)

    def _place(self, unit: int, length: int) -> int:
        total = sum(self.segments)
        assert unit * length % total == 0, (
            f"{total} units in {length} entries: entry {unit * length / total} is no border"
        )
        return unit * length // total


REPLICATED = Shard()
