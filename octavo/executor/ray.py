"""RayActors: starts the ranks of a model as actors on the machines of a Ray cluster.

reserve places, start an actor in each   a process of its own speaks with Ray        ray_link.py, ray_driver.py
hand out the tasks                       with the address where the ranks meet, and the engine's
wait for connections                     from there on as with child processes       door.py, rank_executor.py
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import IO

from octavo import env
from octavo.distributed.world import LocalRanks, Meeting, check_collectives
from octavo.errors import BackendUnavailableError, EngineDeadError
from octavo.executor.door import Door
from octavo.executor.ray_link import WORDS, Errand, Placed, RayLink, Spot
from octavo.executor.remote import Remote, limit_waits
from octavo.observe.machine import installed_version
from octavo.worker.task import WorkerTask


class RayActors:
    """Implements `octavo.executor.rank_executor.Launcher`."""

    def __init__(self) -> None:
        self._link: RayLink | None = None

    def start(self, task: WorkerTask) -> Iterator[Remote]:
        if task.world.size > 1:
            check_collectives()
        self._link = RayLink(task)
        placed = self._link.placed()
        _check_versions(placed.spots)
        tasks = [_own(placed, rank) for rank in range(task.world.size)]
        door = Door(placed.host)
        try:
            self._link.send([_errand(door, own, placed.spots) for own in tasks])
            connections = _admitted(door, self._link, placed.spots)
        finally:
            door.close()
        self._link.cut_when_lost([connections[str(rank)] for rank in range(len(tasks))])
        for rank, (own, spot) in enumerate(zip(tasks, placed.spots, strict=True)):
            connection, words = connections[str(rank)], _readable(connections[f"{WORDS}{rank}"])
            if own.meeting is not None:
                limit_waits(connection, own.meeting.time_limit)
            yield Remote(own.world, connection, _Actor(self._link, rank), words, spot.node)

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


@dataclass(frozen=True, slots=True)
class _Actor:
    """Implements `octavo.executor.remote.RankProcess`."""

    link: RayLink
    rank: int

    def kill(self) -> None:
        self.link.kill(self.rank)

    def is_stopped(self) -> bool:
        return False  # nobody tells

    def reap(self, patience: float) -> str:
        return self.link.how_ended(self.rank, patience)


def _own(placed: Placed, rank: int) -> WorkerTask:
    """A rank's task. The first rank knows its listener."""
    task = _on_its_node(placed.task, rank, placed.spots)
    if task.world.size == 1:
        return task
    hosts = {"host": placed.spots[0].host, "own_host": placed.spots[rank].host}
    meeting = Meeting(port=placed.port, listener=-1, time_limit=env.collective_timeout(), **hosts)
    return replace(task, meeting=meeting)


def _on_its_node(task: WorkerTask, rank: int, spots: Sequence[Spot]) -> WorkerTask:
    """A rank's task, with its place among those of its node."""
    before = [spot.node_id for spot in spots[:rank]].count(spots[rank].node_id)
    here = LocalRanks(rank=before, size=Counter(spot.node_id for spot in spots)[spots[rank].node_id])
    return replace(task, world=replace(task.world, rank=rank, here=here))


def _errand(door: Door, own: WorkerTask, spots: Sequence[Spot]) -> Errand:
    node = spots[own.world.rank].node_id
    gpus = tuple(gpu for other in spots if other.node_id == node for gpu in other.gpus)
    return Errand(own, door.address, os.getcwd(), env.of_ranks(), gpus)


def _check_versions(spots: Sequence[Spot]) -> None:
    for rank, spot in enumerate(spots):
        if spot.version != (own := installed_version()):
            raise BackendUnavailableError(
                f"rank {rank} on {spot.node} has Octavo {spot.version}, and the engine {own}: install the same version "
                "on every node"
            )


def _admitted(door: Door, link: RayLink, spots: Sequence[Spot]) -> dict[str, Connection]:
    """The connections of all ranks, two for each, by their names."""
    admitted: dict[str, Connection] = {}
    until = time.monotonic() + env.collective_timeout()
    while len(admitted) < 2 * len(spots):
        if (one := door.admit()) is not None:
            admitted[one[0]] = one[1]
            continue
        ended = link.first_end()
        if ended is None and time.monotonic() > until:
            ended = next(rank for rank in range(len(spots)) if str(rank) not in admitted), "it is silent"
        if ended is not None:
            rank, why = ended
            raise EngineDeadError(
                f"rank {rank} on {spots[rank].node} has not reached the engine at {door.address.host}: {why}"
            )
    return admitted


def _readable(connection: Connection) -> IO[bytes]:
    """The connection as a pipe."""
    with connection:
        return open(os.dup(connection.fileno()), "rb", buffering=0)
