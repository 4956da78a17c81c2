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
from multiprocessing.connection import Connection, Pipe
from typing import Any

from octavo.child import Child
from octavo.errors import EngineDeadError
from octavo.executor.rank_process import RankTask
from octavo.observe.logging import LOGGER
from octavo.worker.task import WorkerTask

PATIENCE_S = 10.0  # how long a worker may take to close
TARGET = "octavo.executor.rank_process:main"
_TAIL_BYTES = 2000


class Remote:
    """place: where it computes, once that is known. died: how it ended, or None."""

    def __init__(self, task: WorkerTask) -> None:
        self.rank, self._size = task.world.rank, task.world.size
        self.place = ""
        self.died: str | None = None
        self.connection, theirs = Pipe()
        name, meeting = f"worker {self.rank}", task.meeting
        with theirs:
            inherited = [theirs.fileno()]
            if meeting is not None:
                _limit_waits(self.connection, meeting.time_limit)
                inherited += [meeting.listener] if self.rank == 0 else []
            own = RankTask(task, theirs.fileno())
            self.child = Child(name, TARGET, own, inherited, is_one_of_many=meeting is not None)
        self._words = _Words(self.child)

    @property
    def name(self) -> str:
        """worker 1 (rank 1 of 2, on cuda:1)."""
        where = f", on {self.place}" if self.place else ""
        return self.child.name if self._size == 1 else f"{self.child.name} (rank {self.rank} of {self._size}{where})"

    def send(self, packed: bytes) -> None:
        """Send a pickled message. Raises EngineDeadError once the worker is gone."""
        self._talk(lambda: self.connection.send_bytes(packed))

    def receive(self) -> Any:
        """The worker's next message, which may be an exception; None for a log record, which is logged here. Raises
        EngineDeadError once the worker is gone."""
        said = self._talk(self.connection.recv)
        if isinstance(said, logging.LogRecord):
            LOGGER.handle(said)
            return None
        return said

    def is_stopped(self) -> bool:
        """Whether a signal has stopped the process, where the system tells."""
        with suppress(OSError), open(f"/proc/{self.child.process.pid}/stat", encoding="utf-8") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "T"
        return False

    def _talk(self, action: Callable[[], Any]) -> Any:
        if self.died is None:
            try:
                return action()
            except BlockingIOError:
                self.child.kill()
                self.died = f"the process of {self.name} stopped in the middle of a message: {self._ended()}"
            except (EOFError, OSError):
                self.died = f"the process of {self.name} ended: {self._ended()}"
            except BaseException:  # Ctrl-C in the middle of a message: later ones cannot be read
                self.died = f"the process of {self.name} was left in the middle of a message"
                self.child.kill()
                raise
        raise EngineDeadError(self.died)

    def _ended(self) -> str:
        """How it ended, with its last words."""
        ended = self.child.reap(PATIENCE_S)
        words = self._words.last()
        return f"{ended}; its last words: {words}" if words else ended


class _Words:
    """Passes on what a child writes to standard error, and keeps the end of it."""

    def __init__(self, child: Child) -> None:
        self._pipe = child.process.stderr
        self._tail = b""
        self._listener = threading.Thread(target=self._listen, name=f"{child.name}'s words", daemon=True)
        if self._pipe is not None:
            self._listener.start()

    def last(self) -> str:
        """Of a child that has ended."""
        if self._pipe is None:
            return ""
        self._listener.join(1.0)
        return " | ".join(self._tail.decode(errors="replace").strip().splitlines()[-5:])

    def _listen(self) -> None:
        assert self._pipe is not None, "started for a pipe"
        while words := os.read(self._pipe.fileno(), 65536):
            self._tail = (self._tail + words)[-_TAIL_BYTES:]
            with suppress(OSError, ValueError):  # nobody reads ours any more
                sys.stderr.write(words.decode(errors="replace"))
                sys.stderr.flush()
        self._pipe.close()


def _limit_waits(connection: Connection, seconds: float) -> None:
    """A message that the other end does not take, or does not finish, raises BlockingIOError."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
