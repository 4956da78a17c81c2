"""RayLink: the engine's end of a process that speaks with Ray for it (`ray_driver.py`).

    this process                                       the driver's process
      RayTask ─────────────────────────────────────▶   joins the cluster, reserves places, starts an actor in each
          ◀──────────────── what it does next ... Placed, or the exception that was raised there
      Errands ─────────────────────────────────────▶   gives each actor its task
      AnyEnded, HowEnded, Kill ────────────────────▶   asks Ray
          ◀──────────────── how a rank ended
      end of file ─────────────────────────────────▶   leaves the cluster

Ray ends a process whose cluster has been gone for a minute, and blocks one whose cluster hangs. Here it has neither the
engine's process nor the user's program: if the driver ends, the ranks are cut off, and if it hangs, it is killed.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

from octavo import env
from octavo.child import Child
from octavo.errors import EngineDeadError
from octavo.executor.door import Address
from octavo.executor.remote import PATIENCE_S, LastWords
from octavo.worker.task import WorkerTask

WORDS = "words of "  # a connection's name: what a rank writes to standard error
_JOIN_S = 60.0  # how long the cluster may take to be joined
_GRACE_S = 5.0  # what the driver may take beyond the time limit of the call of Ray that it makes


@dataclass(frozen=True, slots=True)
class RayTask:
    """The driver's. address: of the cluster; empty: one on this machine. descriptor: of its end of the link."""

    worker: WorkerTask
    address: str
    descriptor: int
    run_directory: None = None


@dataclass(frozen=True, slots=True)
class Spot:
    """Where an actor runs. gpus: the ids of those that Ray gave it. version: Octavo's."""

    host: str
    node_id: str
    gpus: tuple[str, ...]
    version: str

    @property
    def node(self) -> str:
        return f"node {self.host} ({self.node_id[:8]})"


@dataclass(frozen=True, slots=True)
class Placed:
    """host: the engine's address in the cluster. task: with what a place has. port: where the ranks meet at the first
    one's address."""

    cluster: str
    host: str
    task: WorkerTask
    spots: tuple[Spot, ...]
    port: int


@dataclass(frozen=True, slots=True)
class Errand:
    """What a rank needs to know besides its task. gpus: of all ranks on its node, by local rank."""

    task: WorkerTask
    address: Address
    folder: str
    environment: Mapping[str, str]
    gpus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnyEnded:
    """Asks for the first rank that has ended, and how; None: all run."""


@dataclass(frozen=True, slots=True)
class HowEnded:
    rank: int
    patience: float


@dataclass(frozen=True, slots=True)
class Kill:
    rank: int


class RayLink:
    """Any thread may ask; they take turns."""

    def __init__(self, task: WorkerTask) -> None:
        self._turn = threading.Lock()
        address = _joined() or os.environ.get("RAY_ADDRESS", "")
        self._cluster = f"the Ray cluster at {address}" if ":" in address else "the Ray cluster of this machine"
        self._lost: str | None = None
        self._connection, theirs = Pipe()
        with theirs:
            own = RayTask(task, address, theirs.fileno())
            target = "octavo.executor.ray_driver:main"
            self._child = Child("Ray's driver", target, own, [own.descriptor], is_one_of_many=True)
        self._words = LastWords(self._child.process.stderr, "Ray's driver")

    def placed(self) -> Placed:
        """Once every rank has an actor. Raises what keeps them from it."""
        limit, doing = _JOIN_S, "to be joined"
        while not isinstance(said := self._hear(limit, doing), Placed):
            limit, doing = env.collective_timeout() + _JOIN_S, said
        self._cluster = f"the Ray cluster at {said.cluster}"
        return said

    def send(self, errands: Sequence[Errand]) -> None:
        """To the ranks."""
        self._tell(tuple(errands))

    def first_end(self) -> tuple[int, str] | None:
        """The first rank that has ended, and how."""
        found: tuple[int, str] | None = self._ask(AnyEnded(), 0.0)
        return found

    def how_ended(self, rank: int, patience: float) -> str:
        """A rank is killed if it has not ended after `patience` seconds."""
        try:
            how: str = self._ask(HowEnded(rank, patience), patience)
        except EngineDeadError as lost:
            return str(lost)
        return how

    def kill(self, rank: int) -> None:
        with suppress(EngineDeadError):
            self._tell(Kill(rank))

    def cut_when_lost(self, connections: Sequence[Connection]) -> None:
        """Ranks do not outlive the driver, so that the engine learns of it at once."""
        threading.Thread(target=self._cut, args=(connections,), name="octavo-ray", daemon=True).start()

    def close(self) -> None:
        self._lost = "closed"
        self._connection.close()
        self._child.reap(PATIENCE_S)

    def _cut(self, connections: Sequence[Connection]) -> None:
        self._child.process.wait()
        for connection in connections:
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:  # if it is not closed
                line.shutdown(socket.SHUT_RDWR)

    def _ask(self, question: Any, limit: float) -> Any:
        with self._turn:
            self._tell(question)
            return self._hear(limit + _GRACE_S, "to say how a rank ended")

    def _tell(self, message: Any) -> None:
        if self._lost is None:
            try:
                self._connection.send(message)
                return
            except OSError:
                self._has_ended()
        raise EngineDeadError(self._lost)

    def _hear(self, limit: float, doing: str) -> Any:
        """What the driver says next. Raises it if it is an exception."""
        try:
            has_said = self._connection.poll(limit)
            said = self._connection.recv() if has_said else None
        except (EOFError, OSError):
            self._has_ended()
            raise EngineDeadError(self._lost) from None
        if not has_said:
            self._child.kill()
            self._lost = f"{self._cluster} took more than {limit:g} s {doing}; `ray status` may say why"
            raise EngineDeadError(self._lost)
        if isinstance(said, BaseException):
            raise said
        return said

    def _has_ended(self) -> None:
        how, words = self._child.reap(PATIENCE_S), self._words.last()
        self._lost = f"the engine has lost {self._cluster}: its driver ended with {how}"
        if words:
            self._lost += f"; its last words: {words}"


def _joined() -> str:
    """The address of the cluster that this program has joined by itself."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return ""
    address: str = ray.get_runtime_context().gcs_address
    return address
