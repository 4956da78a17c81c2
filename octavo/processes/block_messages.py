"""The messages between engines about KV blocks: MessagePack in frames, through a TCP or Unix socket.

    borrows (decode)                                 lends (prefill)
      BlockCard ──────────────────────────────────▶    the same card, or it is refused
         ◀────────────────────────────────── Admitted, and the memory that both share, if they share a machine
      Fetch 7: these tokens, I hold 2 blocks ──────▶   computes what it has not got
         ◀────────────────────────────────── Found 7: so many blocks
         ◀────────────────────────────────── Chunk 7: in slot 3    the next blocks, in the shared memory or right behind
      Free 3 ──────────────────────────────────────▶
         ◀────────────────────────────────── Done 7, or at any time Failed 7

One that shares a machine may map the other's pool, and says Opened. It then reads the blocks by itself:
         ◀────────────────────────────────── There 7: in these blocks of the pool
      Read 7 ──────────────────────────────────────▶
         ◀────────────────────────────────── Done 7: they were there all the time

Nobody trusts what comes: sizes are bounded, and whatever is not understood ends the connection.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import msgspec

#: characters of a reason, a name or a salt that is taken from a message
MAX_TEXT = 4096
_MOST_TOLD = 400  # characters


class BlockCard(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """What two engines must have in common. model: a digest of the architecture and of samples of the weights. order:
    of a block's elements, by its backend. groups: the layers of each cache group, and its window. num_ranks: of a
    layer, num_stages: of layers; each has its part of a block."""

    version: str
    model: str
    order: str
    dtype: str
    block_size: int
    block_bytes: int
    groups: tuple[tuple[tuple[int, ...], int | None], ...]
    num_ranks: int = 1
    num_stages: int = 1

    def why_not(self, other: BlockCard) -> str | None:
        """How another engine's card differs, in one sentence."""
        told = {
            "version": "version of Octavo",
            "num_ranks": "tensor_parallel_size",
            "num_stages": "pipeline_parallel_size",
            "order": "backend",
            "dtype": "kv_cache_dtype",
            "block_size": "block_size",
            "groups": "cache groups",
            "block_bytes": "bytes of a block",
        }
        for name, words in told.items():
            own, theirs = getattr(self, name), getattr(other, name)
            if own != theirs:
                return f"its {words} is {str(theirs)[:100]!r}, and this engine's {str(own)[:100]!r}: start both alike"
        if self.model != other.model:
            return "its model is another, or has other weights: start both with the same"
        return None


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Asks for the blocks of a prompt, whose full blocks are token_ids, 4 bytes each. num_held: the first ones that one
    has. salt: as in a request."""

    number: int
    request_id: str
    token_ids: bytes
    salt: str | None
    num_held: int


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Nobody waits for these blocks any more."""

    number: int


class Free(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A slot of the shared memory has been read."""

    slot: int


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The pool has been mapped: no block needs to be sent."""


class Read(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Blocks have been read from the pool."""

    number: int


class Admitted(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """num_slots: of the shared memory, whose descriptor follows; 0: blocks come through the socket. pool: what maps the
    pool itself, if that is possible."""

    num_slots: int
    slot_size: int
    pool: bytes = b""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=17):
    why: str


class Found(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """The first num_blocks blocks of the prompt are there; those that are not held follow."""

    number: int
    num_blocks: int


class Chunk(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """The next num_blocks blocks, in a slot; slot -1: their bytes follow."""

    number: int
    slot: int
    num_blocks: int


class There(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """All blocks that follow, by their ids in the pool, 4 bytes each. They stay until they have been read."""

    number: int
    block_ids: bytes


class Done(msgspec.Struct, frozen=True, array_like=True, tag=20):
    number: int


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=21):
    number: int
    why: str


ToLender = BlockCard | Fetch | Cancel | Free | Opened | Read
ToBorrower = Admitted | Refused | Found | Chunk | There | Done | Failed


TO_LENDER = msgspec.msgpack.Decoder(ToLender)
TO_BORROWER = msgspec.msgpack.Decoder(ToBorrower)


class BadMessageError(Exception):
    """What came is no message, or none that may come now."""


def printable(text: str) -> str:
    """A reason that another engine gave, for a log."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MOST_TOLD])


def pack_ids(ids: Sequence[int]) -> bytes:
    """Of tokens or blocks."""
    return array("i", ids).tobytes()


def unpack_ids(packed: bytes) -> list[int]:
    """Raises BadMessageError."""
    if len(packed) % 4:
        raise BadMessageError(f"ids of {len(packed)} bytes, allowed are 4 for each")
    ids = array("i")
    ids.frombytes(packed)
    return ids.tolist()
