"""Ray's driver: a process that joins a Ray cluster for an engine, starts its ranks there, and asks how they ended.

It is a child of the engine's process, see `ray_link.py`. When it ends, Ray ends the actors and gives their places back.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError

from octavo import env
from octavo.child import begin
from octavo.errors import BackendUnavailableError, EngineDeadError
from octavo.executor.rank_process import portable
from octavo.executor.ray_cluster import RayCluster, bundle_of
from octavo.executor.ray_link import AnyEnded, Errand, HowEnded, Kill, Placed, RayTask, Spot
from octavo.executor.ray_rank import RayRank

_OWN_NODE = "Owner's node has crashed"
_NODE_S = 2.0  # how long a node may take to say how a process on it ended


def main() -> None:
    task, _ = begin()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # what Ray starts inherits them
    connection = Connection(task.descriptor)
    actors = _started(task, connection)
    with suppress(EOFError, OSError):  # the engine closes its end
        if actors is None:
            connection.recv()
        else:
            actors.serve(connection)
    ray.shutdown()


def _started(task: RayTask, connection: Connection) -> _Actors | None:
    """None: they could not be started, and the engine has the reason."""
    try:
        return _Actors(task, connection.send)
    except Exception as error:
        connection.send(portable(error))
        return None


class _Actors:
    """One for each rank. ends: what their only long calls return."""

    def __init__(self, task: RayTask, tell: Callable[[Any], None]) -> None:
        """tell: what is done next, in words."""
        worker = task.worker
        self._cluster = RayCluster(task.address, worker.backend.data_parallel_size)
        bundle = bundle_of(worker)
        if "CPU" in bundle:
            worker = replace(worker, backend=replace(worker.backend, num_threads=int(bundle["CPU"])))
        tell("to find places for the ranks")
        places = self._cluster.places(bundle, worker.world)
        tell("to start the actors of the ranks")
        self._actors = [ray.remote(RayRank).options(**place).remote() for place in places]
        self._ends: list[Any] = []
        spots: list[Spot] = _answers([actor.spot.remote() for actor in self._actors], "started")
        port = _answers([self._actors[0].listen.remote()], "listened")[0] if worker.world.size > 1 else 0
        address = ray.get_runtime_context().gcs_address
        tell(Placed(address, ray.util.get_node_ip_address(), worker, tuple(spots), port))

    def serve(self, connection: Connection) -> None:
        """Raises EOFError once the engine closes its end."""
        while True:
            match connection.recv():
                case AnyEnded():
                    connection.send(self._first_end())
                case HowEnded(rank, patience):
                    connection.send(self._how_ended(rank, patience))
                case Kill(rank):
                    ray.kill(self._actors[rank])
                case errands:
                    self._begin(errands)

    def _begin(self, errands: tuple[Errand, ...]) -> None:
        self._ends = [actor.serve.remote(errand) for actor, errand in zip(self._actors, errands, strict=True)]

    def _first_end(self) -> tuple[int, str] | None:
        ended, _ = ray.wait(self._ends, timeout=0)
        rank = self._ends.index(ended[0]) if ended else -1
        return (rank, self._how_ended(rank, 0)) if ended else None

    def _how_ended(self, rank: int, patience: float) -> str:
        try:
            ray.get(self._ends[rank], timeout=patience)
        except GetTimeoutError:
            ray.kill(self._actors[rank])
            return f"it did not end within {patience:g} s"
        except ActorUnavailableError:
            return self._reason(rank)
        except RayError as error:
            return _short(error)
        return "it closed"

    def _reason(self, rank: int) -> str:
        """Of an actor that Ray has lost. It knows at once why a process on a live node ended, but may take half a
        minute to give up a node."""
        try:
            ray.get(self._actors[rank].spot.remote(), timeout=_NODE_S)
        except ActorDiedError as error:
            return _short(error)
        except RayError:
            pass
        return "its node is gone, or cannot be reached"


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


def _short(error: RayError) -> str:
    """The last line of what Ray says, without its preface and advice."""
    last = str(error).strip().splitlines()[-1].partition(" Some common causes")[0]
    last = last.rpartition("Worker exit detail: ")[2].rstrip(".")
    return last.replace(_OWN_NODE, f"{_OWN_NODE}, the engine's: its raylet has ended, or does not answer")
