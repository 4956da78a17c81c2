"""Cache groups: layers whose block needs are alike, cut into groups of equal size so that one pool serves all.

A full-attention layer needs every block of a sequence; a sliding-window layer only the last few. Each group
has a block table of its own, and since every group holds equally many layers, a block of the pool can serve
any group. Layers whose keys and values differ in shape are never in one group.

    Gemma 3 270M      layers  0 1 2 | 3 4 6 | 7 8 9 | 10 12 13 | 14 15 16      window 512: five groups of 3
    15 sliding, 3 full        5 11 17                                          full:       one group of 3

Where the counts have no good common size, a group may have fewer layers than a block has room for; the size
is the largest whose padding stays under a twelfth of the pool.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

_MOST_PADDING = 1 / 12


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that share block tables. window w: a token at position p sees positions p-w+1 .. p."""

    layers: tuple[int, ...]
    window: int | None = None

    def first_visible_block(self, position: int, block_size: int) -> int:
        """Index of the earliest block that tokens from `position` on can see."""
        if self.window is None:
            return 0
        return max(0, position - self.window + 1) // block_size

    def max_blocks(self, num_tokens: int, chunk_len: int, block_size: int) -> int:
        """Most blocks a sequence of `num_tokens` holds at once, computed in chunks of up to `chunk_len`."""
        whole = -(-num_tokens // block_size)
        if self.window is None:
            return whole
        visible_len = self.window - 1 + chunk_len
        return min(whole, -(-(visible_len - 1) // block_size) + 1)


def make_groups(windows: Sequence[int | None], shapes: Sequence[Hashable] | None = None) -> tuple[CacheGroup, ...]:
    """Per-layer windows (None: full attention) to groups, full attention last. shapes: of the layers' keys and values,
    if they differ; a group's are alike."""
    kinds = list(zip(windows, shapes or [None] * len(windows), strict=True))
    assert kinds, "a model has at least one layer"
    layers = {kind: [layer for layer, its in enumerate(kinds) if its == kind] for kind in dict.fromkeys(kinds)}
    size = _layers_per_group([len(alike) for alike in layers.values()])
    return tuple(
        CacheGroup(tuple(layers[kind][start : start + size]), kind[0])
        for kind in sorted(layers, key=lambda kind: (kind[0] is None, kind[0] or 0))
        for start in range(0, len(layers[kind]), size)
    )


def _layers_per_group(counts: list[int]) -> int:
    num_layers = sum(counts)
    for size in range(max(counts), 1, -1):
        num_places = sum(-(-count // size) * size for count in counts)
        if num_places - num_layers <= _MOST_PADDING * num_places:
            return size
    return 1
