"""RanksMover: moves KV blocks of which each rank has a part, from the engine's process.

    engine's process                              a rank's process
      FenceAt 7 ────────── among the plans ──────▶   the end of all steps submitted so far
      Move read 7: blocks ── a socket of its own ▶   a thread copies its parts of them into memory that both map
         ◀─────────────────────────────────────── done

    block     [ rank 0's heads and layers | rank 1's | ... ]

Where the ranks of another engine export their pools, each rank maps that of the rank with its own number.
"""

from __future__ import annotations

import itertools
import mmap
import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any, Literal

import numpy as np

from octavo.kernels.block_mover import BlockMover, Bytes, Fence, OtherPool

_STAGING_BYTES = 16 << 20  # of each rank's blocks that travel at once
#: fences that a rank remembers. For one that it has forgotten it waits longer, until the oldest that it knows
_MOST_FENCES = 4096


@dataclass(frozen=True, slots=True)
class BeginMoves:
    """A message to a rank: it serves moves from now on. The descriptors of a socket and of memory follow."""

    num_bytes: int


@dataclass(frozen=True, slots=True)
class FenceAt:
    """A message to a rank, among the plans."""

    number: int


@dataclass(frozen=True, slots=True)
class _Move:
    """pool: what another rank exports, to be opened. theirs: blocks of a pool that was opened."""

    what: Literal["read", "write", "wait", "export", "open", "copy", "close"]
    fence: int = -1
    block_ids: tuple[int, ...] = ()
    theirs: tuple[int, ...] = ()
    pool: bytes = b""


class RanksMover:
    """Implements `octavo.kernels.block_mover.BlockMover`. Any thread may move; they take turns."""

    def __init__(
        self, connections: Sequence[Connection], rank_bytes: int, tell_all: Callable[[Any], None], limit: float
    ) -> None:
        """connections: with all ranks, on this machine. rank_bytes: of a rank's part of a block. tell_all: sends a
        message to all ranks, among the plans. limit: seconds that a move may take."""
        self._tell_all, self._limit = tell_all, limit
        self._numbers, self._turn = itertools.count(), threading.Lock()
        self._ends: list[Connection] = []
        self._memory: list[Bytes] = []
        tell_all(BeginMoves(max(_STAGING_BYTES, rank_bytes)))
        for connection in connections:
            self._begin(connection, max(_STAGING_BYTES, rank_bytes))
        orders, sizes = zip(*(self._take(end) for end in self._ends), strict=True)
        self.order: str = orders[0]
        self.block_bytes = sum(sizes)
        starts = list(itertools.accumulate(sizes, initial=0))
        self._columns = [slice(*ends) for ends in itertools.pairwise(starts)]
        self._most = max(_STAGING_BYTES, rank_bytes) // max(sizes)
        assert self._most, "the first stage has as many layers as any other, so its part of a block is the largest"

    def fence(self) -> Fence:
        number = next(self._numbers)
        self._tell_all(FenceAt(number))
        return number

    def read(self, fence: Fence, block_ids: Sequence[int], out: Bytes) -> None:
        with self._turn:
            for some in self._parts(block_ids):
                self._move("read", fence, tuple(block_ids[some]))
                for columns, staged in zip(self._columns, self._staged(len(block_ids[some])), strict=True):
                    out[some, columns] = staged

    def write(self, fence: Fence, block_ids: Sequence[int], data: Bytes) -> None:
        with self._turn:
            for some in self._parts(block_ids):
                for columns, staged in zip(self._columns, self._staged(len(block_ids[some])), strict=True):
                    staged[:] = data[some, columns]
                self._move("write", fence, tuple(block_ids[some]))

    def wait(self, fence: Fence) -> None:
        with self._turn:
            self._move("wait", fence)

    def pin(self, memory: Bytes) -> Callable[[], None]:
        """Ranks have pinned their own."""
        return lambda: None

    def exported(self) -> bytes:
        with self._turn:
            exports: list[bytes] = self._ask([_Move("export")] * len(self._ends))
        return b"".join(exports) if all(exports) else b""

    def open(self, exported: bytes) -> OtherPool:
        size, rest = divmod(len(exported), len(self._ends))
        if rest:
            raise RuntimeError(f"{len(exported)} bytes are no pools of {len(self._ends)} ranks")
        parts = [exported[begin : begin + size] for begin in range(0, len(exported), size)]
        with self._turn:
            try:
                num_blocks = min(self._ask([_Move("open", pool=part) for part in parts]))
            except RuntimeError:
                self._ask([_Move("close")] * len(self._ends))  # some ranks may have opened theirs
                raise
        return _RanksPool(num_blocks, self._copy, self._close_pool)

    def close(self) -> None:
        """Wakes threads that wait for a move: it fails, and so do all later ones."""
        for end in self._ends:
            with suppress(OSError), socket.socket(fileno=os.dup(end.fileno())) as ours:
                ours.shutdown(socket.SHUT_RDWR)

    def _begin(self, connection: Connection, num_bytes: int) -> None:
        ours, theirs = Pipe()
        self._ends.append(ours)
        descriptor = os.memfd_create("octavo-moves", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, num_bytes)
            self._memory.append(np.frombuffer(mmap.mmap(descriptor, num_bytes), np.uint8))
            with theirs, socket.socket(fileno=os.dup(connection.fileno())) as end:
                socket.send_fds(end, [b"m"], [theirs.fileno(), descriptor])
        finally:
            os.close(descriptor)

    def _parts(self, block_ids: Sequence[int]) -> list[slice]:
        """As many at a time as the memory holds."""
        return [slice(begin, begin + self._most) for begin in range(0, len(block_ids), self._most)]

    def _staged(self, count: int) -> list[Bytes]:
        """Each rank's parts of so many blocks."""
        sizes = [columns.stop - columns.start for columns in self._columns]
        pairs = zip(self._memory, sizes, strict=True)
        return [memory[: count * size].reshape(count, size) for memory, size in pairs]

    def _copy(self, fence: Fence, their_ids: Sequence[int], block_ids: Sequence[int]) -> None:
        with self._turn:
            self._move("copy", fence, tuple(block_ids), tuple(their_ids))

    def _close_pool(self) -> None:
        with self._turn, suppress(RuntimeError):
            self._ask([_Move("close")] * len(self._ends))

    def _move(self, what: Any, fence: Fence, block_ids: tuple[int, ...] = (), theirs: tuple[int, ...] = ()) -> None:
        assert isinstance(fence, int), "a fence of this mover"
        self._ask([_Move(what, fence, block_ids, theirs)] * len(self._ends))

    def _ask(self, moves: Sequence[_Move]) -> list[Any]:
        """Each rank's answer. Raises RuntimeError, also where a rank is gone."""
        try:
            for end, move in zip(self._ends, moves, strict=True):
                end.send(move)
            answers = [self._take(end) for end in self._ends]
        except (OSError, EOFError) as gone:
            self.close()  # what comes late would be taken for another answer
            raise RuntimeError(f"a rank moves no blocks any more: {gone}") from None
        if fault := next((answer for answer in answers if isinstance(answer, Exception)), None):
            raise fault
        return answers

    def _take(self, end: Connection) -> Any:
        if not end.poll(self._limit):
            raise TimeoutError(f"it gave no answer for {self._limit:g} s")
        return end.recv()


@dataclass(slots=True, eq=False)
class _RanksPool:
    """Implements `octavo.kernels.block_mover.OtherPool`."""

    num_blocks: int
    copy: Callable[[Fence, Sequence[int], Sequence[int]], None]
    close: Callable[[], None]


class RankMoves:
    """What serves moves in a rank's process: a thread, beside the steps."""

    def __init__(self, begin: BeginMoves, connection: Connection, mover: BlockMover) -> None:
        """connection: with the engine, behind the message."""
        with socket.socket(fileno=os.dup(connection.fileno())) as parent:
            _, (descriptor, memory), _, _ = socket.recv_fds(parent, 1, 2)
        self._end, self._mover = Connection(descriptor), mover
        self._memory: Bytes = np.frombuffer(mmap.mmap(memory, begin.num_bytes), np.uint8)
        os.close(memory)
        mover.pin(self._memory)  # here: another thread may have another GPU
        self._fences: dict[int, Fence] = {}
        self._has_come = threading.Condition()
        self._pool: OtherPool | None = None
        threading.Thread(target=self._serve, name="octavo-moves", daemon=True).start()

    def fence(self, number: int) -> None:
        """On the thread that submits steps."""
        with self._has_come:
            self._fences[number] = self._mover.fence()
            if len(self._fences) > _MOST_FENCES:
                del self._fences[next(iter(self._fences))]
            self._has_come.notify_all()

    def _serve(self) -> None:
        try:
            self._end.send((self._mover.order, self._mover.block_bytes))
            while True:
                move = self._end.recv()
                try:
                    answer = self._do(move)
                except Exception as fault:
                    answer = RuntimeError(f"{type(fault).__name__}: {fault}")
                self._end.send(answer)
        except (EOFError, OSError):
            return  # the engine is gone, and this process ends

    def _do(self, move: _Move) -> Any:
        mover, staged = self._mover, self._memory[: len(move.block_ids) * self._mover.block_bytes]
        staged = staged.reshape(len(move.block_ids), mover.block_bytes)
        match move.what:
            case "read":
                mover.read(self._known(move.fence), move.block_ids, staged)
            case "write":
                mover.write(self._known(move.fence), move.block_ids, staged)
            case "wait":
                mover.wait(self._known(move.fence))
            case "export":
                return mover.exported()
            case "open":
                self._pool = mover.open(move.pool)
                return self._pool.num_blocks
            case "copy":
                assert self._pool is not None, "it was opened"
                self._pool.copy(self._known(move.fence), move.theirs, move.block_ids)
            case "close":
                if self._pool is not None:
                    self._pool.close()
                    self._pool = None
        return True

    def _known(self, number: int) -> Fence:
        with self._has_come:
            self._has_come.wait_for(lambda: self._fences and next(reversed(self._fences)) >= number)
            oldest = next(iter(self._fences))
            return self._fences[max(number, oldest)]
