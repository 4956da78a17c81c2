"""Remote: one worker's process, as its parent sees it: messages, how it ended, and its last words.

Where there are several ranks, no call blocks for good: one that is stopped, or hangs, does not stop its parent.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import IO, Any, Protocol

from octavo.distributed.world import World
from octavo.errors import EngineDeadError
from octavo.executor.packing import unpacked
from octavo.observe.logging import LOGGER

PATIENCE_S = 10.0  # how long a worker may take to close
_TAIL_BYTES = 2000


class RankProcess(Protocol):
    """A worker's process, as those see it who started it."""

    def kill(self) -> None: ...

    def is_stopped(self) -> bool:
        """Whether a signal has stopped it, where that can be known."""

    def reap(self, patience: float) -> str:
        """Wait for its end, kill it after `patience` seconds, and say how it ended."""


class Remote:
    """place: where it computes, once that is known. died: how it ended, or None."""

    def __init__(
        self,
        world: World,
        connection: Connection,
        process: RankProcess,
        words: IO[bytes] | None = None,
        node: str = "",
    ) -> None:
        """words: its standard error, to be read here. node: its machine, if it is not on this one."""
        self.rank, self._size, self._node = world.rank, world.size, node
        self._stage = f", stage {world.stage}" if world.pipeline_parallel_size > 1 else ""
        self.place = node
        self.died: str | None = None
        self.connection, self.process = connection, process
        self._words = LastWords(words, f"worker {self.rank}")

    @property
    def name(self) -> str:
        """worker 1 (rank 1 of 2, on cuda:1); worker 2 (rank 2 of 4, stage 1, on cpu)."""
        where = f", on {self.place}" if self.place else ""
        one = f"worker {self.rank}"
        rank = f"rank {self.rank} of {self._size}{self._stage}{where}"
        return one if self._size == 1 and not self._node else f"{one} ({rank})"

    def found(self, place: str) -> None:
        """Its worker is built, and computes there."""
        self.place = f"{place} of {self._node}" if self._node else place

    def send(self, data: bytes) -> None:
        """Send a packed message. Raises EngineDeadError once the worker is gone."""
        self._talk(lambda: self.connection.send_bytes(data))

    def receive(self) -> Any:
        """The worker's next message, which may be an exception; None for a log record, which is logged here. Raises
        EngineDeadError once the worker is gone."""
        said = self._talk(lambda: unpacked(self.connection.recv_bytes()))
        if isinstance(said, logging.LogRecord):
            LOGGER.handle(said)
            return None
        return said

    def _talk(self, action: Callable[[], Any]) -> Any:
        if self.died is None:
            try:
                return action()
            except BlockingIOError:
                self.process.kill()
                self.died = f"the process of {self.name} stopped in the middle of a message: {self._ended()}"
            except (EOFError, OSError):
                self.died = f"the process of {self.name} ended: {self._ended()}"
            except BaseException:  # Ctrl-C in the middle of a message: later ones cannot be read
                self.died = f"the process of {self.name} was left in the middle of a message"
                self.process.kill()
                raise
        raise EngineDeadError(self.died)

    def _ended(self) -> str:
        """How it ended, with its last words."""
        ended = self.process.reap(PATIENCE_S)
        words = self._words.last()
        return f"{ended}; its last words: {words}" if words else ended


class LastWords:
    """Passes on what a worker writes to standard error, and keeps the end of it."""

    def __init__(self, pipe: IO[bytes] | None, name: str) -> None:
        self._pipe = pipe
        self._tail = b""
        self._listener = threading.Thread(target=self._listen, name=f"{name}'s words", daemon=True)
        if self._pipe is not None:
            self._listener.start()

    def last(self) -> str:
        """Of a worker that has ended."""
        if self._pipe is None:
            return ""
        self._listener.join(1.0)
        return " | ".join(self._tail.decode(errors="replace").strip().splitlines()[-5:])

    def _listen(self) -> None:
        assert self._pipe is not None, "started for a pipe"
        while words := self._read(self._pipe.fileno()):
            self._tail = (self._tail + words)[-_TAIL_BYTES:]
            with suppress(OSError, ValueError):  # nobody reads ours any more
                sys.stderr.write(words.decode(errors="replace"))
                sys.stderr.flush()
        self._pipe.close()

    def _read(self, descriptor: int) -> bytes:
        try:
            return os.read(descriptor, 65536)
        except OSError:  # a machine that is gone
            return b""


def limit_waits(connection: Connection, seconds: float) -> None:
    """A message that the other end does not take, or does not finish, raises BlockingIOError."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
