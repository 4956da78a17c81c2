"""Blocks of KV memory: their names, the layers that share them, and the tables of a sequence.

A block has `block_size` token slots of keys and values, for the layers of one cache group. Once every slot is written,
its content is named by a hash chained to its parent's, so that equal hashes mean equal tokens from the start on:

    root(salt, adapter, media) -> hash(root, tokens 0..15) -> hash(that, tokens 16..31) -> ...

The hash is 128 bits of BLAKE2b: two users' blocks are never confused, not even on purpose, and it means the same in
another process.

A full-attention layer needs every block of a sequence; a sliding-window layer only the last few. So each group of
layers has a table of its own. Every group holds equally many layers, so a block of the pool can serve any group:

    Gemma 3 270M      layers  0 1 2 | 3 4 6 | 7 8 9 | 10 12 13 | 14 15 16      window 512: five groups of 3
    15 sliding, 3 full        5 11 17                                          full:       one group of 3

All tables of a sequence are equally long; entry i of each holds tokens i*block_size onwards:

    tokens            0..15   16..31   32..47   48..63
    group 0, full       4        9       17        3       3 may be shared with a fork until someone writes
    group 1, window     0        0       12        8       0: null, behind the window, given back
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as Listlike
from dataclasses import dataclass
from hashlib import blake2b
from typing import NewType

from octavo.request import Request

BlockId = NewType("BlockId", int)
ContentHash = NewType("ContentHash", bytes)

#: Stands in a table where a sequence has nothing to read; never written, never read.
NULL_BLOCK = BlockId(0)

_HASH_SIZE = 16  # bytes
_MOST_PADDING = 1 / 12  # of the pool


@dataclass(frozen=True, slots=True)
class Root:
    """What keys and values depend on beside the tokens: requests share blocks only under the same root.

    salt: the user's word that keeps prefix caches apart. adapter: the digest of an adapter of the weights.
    media: a digest of the prompt's images and other media.
    """

    salt: str | None = None
    adapter: str | None = None
    media: bytes | None = None

    @classmethod
    def of(cls, request: Request) -> Root:
        if request.adapter is not None:
            return cls(request.cache_salt, request.adapter.digest)
        asked = request.lora_request  # in a front end, which knows no content
        return cls(request.cache_salt, None if asked is None else asked.lora_name)

    def hash(self) -> ContentHash:
        """A sequence's first block is chained to this. Each part follows its length, so different roots never hash the
        same bytes."""
        digest = blake2b(digest_size=_HASH_SIZE, person=b"octavo root")
        for part in (self.salt, self.adapter, self.media):
            value = part.encode() if isinstance(part, str) else part
            digest.update(b"none;" if value is None else b"%d;%s" % (len(value), value))
        return ContentHash(digest.digest())


def chain_hash(parent: ContentHash, token_ids: Listlike[int]) -> ContentHash:
    """The name of a full block of these tokens that follows `parent`."""
    return ContentHash(blake2b(parent + array("q", token_ids).tobytes(), digest_size=_HASH_SIZE).digest())


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


def make_groups(windows: Listlike[int | None]) -> tuple[CacheGroup, ...]:
    """Per-layer windows (None: full attention) to groups, full attention last. Where the numbers of layers have no good
    common divisor, a group may have fewer layers than a block has room for."""
    assert windows, "a model has at least one layer"
    layers = {kind: [layer for layer, its in enumerate(windows) if its == kind] for kind in dict.fromkeys(windows)}
    size = _layers_per_group([len(alike) for alike in layers.values()])
    return tuple(
        CacheGroup(tuple(layers[window][start : start + size]), window)
        for window in sorted(layers, key=lambda window: (window is None, window or 0))
        for start in range(0, len(layers[window]), size)
    )


def _layers_per_group(counts: list[int]) -> int:
    """The largest size that wastes little of the pool."""
    num_layers = sum(counts)
    for size in range(max(counts), 1, -1):
        num_places = sum(-(-count // size) * size for count in counts)
        if num_places - num_layers <= _MOST_PADDING * num_places:
            return size
    return 1


def live(tables: Iterable[list[BlockId]]) -> list[BlockId]:
    """Every block in these tables, without null blocks."""
    return [block_id for table in tables for block_id in table if block_id != NULL_BLOCK]


@dataclass(slots=True, eq=False)
class BlockTables:
    """A sequence's tables, and what is known about them.

    hashes: root, then the content hash of each full block, as far as anyone has asked.
    first_visible: per group, entries before it are null.
    num_found: leading blocks that came from the prefix tree. num_published: leading blocks that are in it.
    room: how many tokens may be written without asking again; less while a fork shares the last block.
    """

    hashes: list[ContentHash]
    block_ids: list[list[BlockId]]
    first_visible: list[int]
    num_found: int = 0
    num_published: int = 0
    room: int = 0

    @classmethod
    def empty(cls, root: ContentHash, num_groups: int) -> BlockTables:
        return cls([root], [[] for _ in range(num_groups)], [0] * num_groups)

    @property
    def num_blocks(self) -> int:
        return len(self.block_ids[0])

    def extend_hashes(self, token_ids: Listlike[int], num_blocks: int, block_size: int) -> None:
        """Know the hashes of the first `num_blocks` blocks."""
        for index in range(len(self.hashes) - 1, num_blocks):
            tokens = token_ids[index * block_size : (index + 1) * block_size]
            self.hashes.append(chain_hash(self.hashes[-1], tokens))

    def fork(self, room: int) -> BlockTables:
        """The same blocks for a child; neither may write past `room` without asking."""
        self.room = room
        return BlockTables(
            hashes=list(self.hashes),
            block_ids=[list(table) for table in self.block_ids],
            first_visible=list(self.first_visible),
            num_found=self.num_published,
            num_published=self.num_published,
            room=room,
        )

    def rewind(self, num_tokens: int, groups: Listlike[CacheGroup], block_size: int) -> bool:
        """Other tokens than these first ones may be written again. False: a window has passed them."""
        for group, first in zip(groups, self.first_visible, strict=True):
            if first > group.first_visible_block(num_tokens, block_size):
                return False
        self.room = min(self.room, num_tokens)
        self.num_published = min(self.num_published, num_tokens // block_size)
        self.num_found = min(self.num_found, self.num_published)
        return True

    def clear(self) -> None:
        """Hold nothing, but keep the hashes: the sequence may come back."""
        for table in self.block_ids:
            table.clear()
        self.first_visible = [0] * len(self.block_ids)
        self.num_found = self.num_published = self.room = 0
