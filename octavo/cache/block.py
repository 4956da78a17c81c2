"""A block and its name: `block_size` token slots of keys and values, for the layers of one cache group.

Once every slot is written, a block's content is named by a hash chained to its parent's, so that equal
hashes mean equal tokens all the way from the start of the sequence:

    root(cache_salt) -> hash(root, tokens 0..15) -> hash(that, tokens 16..31) -> ...

The hash is 128 bits of BLAKE2b: two users' blocks are never confused, not even by someone who tries, and
it means the same in another process. The salt enters the first link and with it every later one.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import NewType

BlockId = NewType("BlockId", int)
ContentHash = NewType("ContentHash", bytes)

#: Stands in a table where a sequence has nothing to read; never written, never read.
NULL_BLOCK = BlockId(0)

_HASH_SIZE = 16


def root_hash(cache_salt: str | None) -> ContentHash:
    """What a sequence's first block is chained to. Requests share blocks only under the same salt."""
    salt = b"" if cache_salt is None else b"salt:" + cache_salt.encode()
    return ContentHash(blake2b(salt, digest_size=_HASH_SIZE, person=b"octavo root").digest())


def chain_hash(parent: ContentHash, token_ids: Sequence[int]) -> ContentHash:
    """The name of a full block of these tokens that follows `parent`."""
    return ContentHash(blake2b(parent + array("q", token_ids).tobytes(), digest_size=_HASH_SIZE).digest())
