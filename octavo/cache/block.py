"""A block and its name: `block_size` token slots of keys and values, for the layers of one cache group.

Once every slot is written, a block's content is named by a hash chained to its parent's, so that equal
hashes mean equal tokens all the way from the start of the sequence:

    root(salt, adapter, media) -> hash(root, tokens 0..15) -> hash(that, tokens 16..31) -> ...

The hash is 128 bits of BLAKE2b: two users' blocks are never confused, not even by someone who tries, and
it means the same in another process. The root is the first link, and so part of every later one.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NewType

from octavo.request import Request

BlockId = NewType("BlockId", int)
ContentHash = NewType("ContentHash", bytes)

#: Stands in a table where a sequence has nothing to read; never written, never read.
NULL_BLOCK = BlockId(0)

_HASH_SIZE = 16


@dataclass(frozen=True, slots=True)
class Root:
    """What keys and values depend on beside the tokens: requests share blocks only under the same root.

    salt: the user's word that keeps prefix caches apart. adapter: the name of what changes the weights.
    media: a digest of what is not text in the prompt.
    """

    salt: str | None = None
    adapter: str | None = None
    media: bytes | None = None

    @classmethod
    def of(cls, request: Request) -> Root:
        return cls(salt=request.cache_salt)

    def hash(self) -> ContentHash:
        """What a sequence's first block is chained to. Each part is led by its length, so no two roots read alike."""
        digest = blake2b(digest_size=_HASH_SIZE, person=b"octavo root")
        for part in (self.salt, self.adapter, self.media):
            value = part.encode() if isinstance(part, str) else part
            digest.update(b"none;" if value is None else b"%d;%s" % (len(value), value))
        return ContentHash(digest.digest())


def chain_hash(parent: ContentHash, token_ids: Sequence[int]) -> ContentHash:
    """The name of a full block of these tokens that follows `parent`."""
    return ContentHash(blake2b(parent + array("q", token_ids).tobytes(), digest_size=_HASH_SIZE).digest())
