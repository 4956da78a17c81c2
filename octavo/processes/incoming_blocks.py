"""Incoming: the blocks of one request, on their way from another engine: who waits for what, and where it is written.

The engine's thread decides where, and may give all up at any moment; the connection's thread writes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from octavo.cache.block_loans import Loan
from octavo.cache.blocks import BlockId, ContentHash
from octavo.kernels.block_mover import BlockMover, Fence, OtherPool
from octavo.processes.block_door import Slots
from octavo.processes.block_messages import BadMessageError
from octavo.request import Request

#: the connection that they come over
Link = TypeVar("Link")

#: where blocks are written, after which steps; None: nowhere
Room = tuple[list[BlockId], Fence] | None


@dataclass(slots=True, eq=False)
class Incoming(Generic[Link]):
    """The blocks of a request, on their way. hashes: of its prompt's blocks, behind the root. num_held: those that it
    has found here. loan: once room for them is borrowed."""

    number: int
    request: Request
    link: Link
    hashes: Sequence[ContentHash]
    num_held: int
    deadline: float
    loan: Loan | None = None
    _decision: queue.SimpleQueue[Room] = field(default_factory=queue.SimpleQueue)
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _is_over: bool = False
    is_found: bool = False
    room: Room = None
    num_written: int = 0

    def decide(self, room: Room) -> None:
        """On the engine's thread: where the blocks are to be written. Only the first decision counts."""
        self._decision.put(room)

    def wait_for_room(self) -> None:
        self.is_found = True
        self.room = self._decision.get()

    def stop_writing(self) -> bool:
        """Nothing is written from now on. False: something is being written at this moment."""
        if not self._writing.acquire(blocking=False):
            return False
        self._is_over = True
        self._writing.release()
        return True

    def write(self, mover: BlockMover, slots: Slots, slot: int, count: int) -> None:
        """The next blocks have come."""
        if self.room is None:
            return
        block_ids, fence = self.room
        if self.num_written + count > len(block_ids):
            raise BadMessageError("more blocks than it has found")
        with self._writing:
            if not self._is_over:
                mover.write(fence, block_ids[self.num_written : self.num_written + count], slots.blocks(slot, count))
        self.num_written += count

    def copy(self, pool: OtherPool, their_ids: Sequence[int]) -> None:
        """All blocks are there, to be read from the other engine's pool."""
        if self.room is None:
            return
        block_ids, fence = self.room
        if self.num_written or len(their_ids) != len(block_ids):
            raise BadMessageError("other blocks than it has found")
        if not 0 <= min(their_ids) <= max(their_ids) < pool.num_blocks:
            raise BadMessageError(f"a block is none of the {pool.num_blocks} of its pool")
        with self._writing:
            if not self._is_over:
                pool.copy(fence, their_ids, block_ids)
        self.num_written = len(block_ids)

    @property
    def is_whole(self) -> bool:
        return self.room is not None and self.num_written == len(self.room[0])
