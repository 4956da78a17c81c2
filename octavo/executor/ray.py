"""RayActors: starts the ranks of a model as actors on the machines of a Ray cluster.

reserve places          one placement group, a bundle for each rank         ray_cluster.py
start an actor in each  it says where it is                                 ray_rank.py
hand out the tasks      with the address where the ranks meet, and the engine's
wait for connections    from there on as with child processes               door.py, rank_executor.py
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import IO, Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError

from octavo import env
from octavo.distributed.world import LocalRanks, Meeting, check_collectives
from octavo.errors import BackendUnavailableError, EngineDeadError
from octavo.executor.door import Door
from octavo.executor.ray_cluster import RayCluster, bundle_of
from octavo.executor.ray_rank import WORDS, Errand, RayRank, Spot
from octavo.executor.remote import Remote, limit_waits
from octavo.observe.machine import installed_version
from octavo.worker.task import WorkerTask

_NODE_S = 2.0  # how long a node may take to say how a process on it ended


class RayActors:
    """Implements `octavo.executor.rank_executor.Launcher`."""

    def __init__(self) -> None:
        self._cluster: RayCluster | None = None

    def start(self, task: WorkerTask) -> Iterator[Remote]:
        if task.world.size > 1:
            check_collectives()
        self._cluster = RayCluster(task.backend.data_parallel_size)
        bundle = bundle_of(task)
        if "CPU" in bundle:
            task = replace(task, backend=replace(task.backend, num_threads=int(bundle["CPU"])))
        places = self._cluster.places(bundle, task.world)
        actors = [ray.remote(RayRank).options(**place).remote() for place in places]
        spots: list[Spot] = _answers([actor.spot.remote() for actor in actors], "started")
        _check_versions(spots)
        tasks = [_on_its_node(task, rank, spots) for rank in range(task.world.size)]
        if task.world.size > 1:
            port = _answers([actors[0].listen.remote()], "listened")[0]
            tasks = [_with_meeting(own, spots, port) for own in tasks]
        yield from self._connected(actors, tasks, spots)

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def _connected(self, actors: list[Any], tasks: list[WorkerTask], spots: list[Spot]) -> Iterator[Remote]:
        door = Door(ray.util.get_node_ip_address())
        try:
            ends = []
            for actor, own, spot in zip(actors, tasks, spots, strict=True):
                gpus = tuple(gpu for other in spots if other.node_id == spot.node_id for gpu in other.gpus)
                ends.append(actor.serve.remote(own, Errand(door.address, os.getcwd(), env.of_ranks(), gpus)))
            connections = _admitted(door, ends, spots)
        finally:
            door.close()
        for rank, (own, spot) in enumerate(zip(tasks, spots, strict=True)):
            connection, words = connections[str(rank)], _readable(connections[f"{WORDS}{rank}"])
            if own.meeting is not None:
                limit_waits(connection, own.meeting.time_limit)
            yield Remote(own.world, connection, _Actor(actors[rank], ends[rank], spot), words, spot.node)


@dataclass(frozen=True, slots=True)
class _Actor:
    """Implements `octavo.executor.remote.RankProcess`. end: what its only long call returns."""

    actor: Any
    end: Any
    spot: Spot

    def kill(self) -> None:
        ray.kill(self.actor)

    def is_stopped(self) -> bool:
        return False  # nobody tells

    def reap(self, patience: float) -> str:
        try:
            ray.get(self.end, timeout=patience)
        except GetTimeoutError:
            self.kill()
            return f"it did not end within {patience:g} s"
        except ActorUnavailableError:
            return self._reason()
        except RayError as error:
            return _short(error)
        return "it closed"

    def _reason(self) -> str:
        """Of an actor that Ray has lost. It knows at once why a process on a live node ended, but may take half a
        minute to give up a node."""
        try:
            ray.get(self.actor.spot.remote(), timeout=_NODE_S)
        except ActorDiedError as error:
            return _short(error)
        except RayError:
            pass
        return "its node is gone, or cannot be reached"


def _on_its_node(task: WorkerTask, rank: int, spots: Sequence[Spot]) -> WorkerTask:
    """A rank's task, with its place among those of its node."""
    before = [spot.node_id for spot in spots[:rank]].count(spots[rank].node_id)
    here = LocalRanks(rank=before, size=Counter(spot.node_id for spot in spots)[spots[rank].node_id])
    return replace(task, world=replace(task.world, rank=rank, here=here))


def _with_meeting(task: WorkerTask, spots: Sequence[Spot], port: int) -> WorkerTask:
    """The first rank knows its listener."""
    hosts = {"host": spots[0].host, "own_host": spots[task.world.rank].host}
    meeting = Meeting(port=port, listener=-1, time_limit=env.collective_timeout(), **hosts)
    return replace(task, meeting=meeting)


def _check_versions(spots: Sequence[Spot]) -> None:
    for rank, spot in enumerate(spots):
        if spot.version != (own := installed_version()):
            raise BackendUnavailableError(
                f"rank {rank} on {spot.node} has Octavo {spot.version}, and the engine {own}: install the same version "
                "on every node"
            )


def _answers(calls: list[Any], what: str) -> list[Any]:
    """Of calls of actors."""
    limit = env.collective_timeout()
    try:
        answers: list[Any] = ray.get(calls, timeout=limit)
    except GetTimeoutError:
        raise EngineDeadError(
            f"the actors of the ranks have not {what} within {limit:g} s; `ray status` may say why"
        ) from None
    except RayError as error:
        raise BackendUnavailableError(f"the actors of the ranks have not {what}: {_short(error)}") from error
    return answers


def _admitted(door: Door, ends: list[Any], spots: Sequence[Spot]) -> dict[str, Connection]:
    """The connections of all ranks, two for each, by their names."""
    admitted: dict[str, Connection] = {}
    until = time.monotonic() + env.collective_timeout()
    while len(admitted) < 2 * len(ends):
        if (one := door.admit()) is not None:
            admitted[one[0]] = one[1]
            continue
        ended, _ = ray.wait(ends, timeout=0)
        silent = [rank for rank in range(len(ends)) if str(rank) not in admitted]
        if ended or time.monotonic() > until:
            rank = ends.index(ended[0]) if ended else silent[0]
            why = _Actor(None, ended[0], spots[rank]).reap(0) if ended else "it is silent"
            raise EngineDeadError(
                f"rank {rank} on {spots[rank].node} has not reached the engine at {door.address.host}: {why}"
            )
    return admitted


def _readable(connection: Connection) -> IO[bytes]:
    """The connection as a pipe."""
    with connection:
        return open(os.dup(connection.fileno()), "rb", buffering=0)


def _short(error: RayError) -> str:
    """The last line of what Ray says, without its preface and advice."""
    last = str(error).strip().splitlines()[-1].partition(" Some common causes")[0]
    return last.rpartition("Worker exit detail: ")[2].rstrip(".")
