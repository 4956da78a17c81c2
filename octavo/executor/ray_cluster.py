"""RayCluster: this process's membership of a Ray cluster, and the places that a model's ranks have there.

    RAY_ADDRESS, or a cluster on this machine     is joined
    neither                                       one is started on this machine, and ends with the engine; engines
                                                  that share requests share a cluster, which must run already

A place is a bundle of one placement group: a GPU where the cluster has GPUs and the backend may use them, else cores.
Ranks are packed on as few nodes as possible; those of a node have neighbouring numbers, and the engine's node is first.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import threading
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from octavo import env
from octavo.distributed.world import World
from octavo.errors import BackendUnavailableError, ConfigError
from octavo.executor.ray_guard import guard, raylets
from octavo.worker.task import WorkerTask

Bundle = dict[str, float]
_REACH_S = 5.0
_ONE_CLUSTER = (
    "data_parallel_size is more than 1, and engines on Ray share one cluster, but none runs here: start one with `ray "
    "start --head`, or set RAY_ADDRESS to one that runs"
)


class RayCluster:
    """Raises BackendUnavailableError if Ray can neither be reached nor started."""

    def __init__(self, num_engines: int = 1) -> None:
        """num_engines: with such ranks, which reserve their places in the same cluster."""
        self._group: PlacementGroup | None = None
        self._num_engines = num_engines
        _membership.join(may_start=num_engines == 1)

    def places(self, bundle: Bundle, world: World) -> list[dict[str, Any]]:
        """For each rank, the options of its actor. Raises ConfigError if the cluster is too small, or too busy for as
        long as ranks wait for each other."""
        self._check_size(bundle, world)
        self._group = placement_group([bundle] * world.size, strategy="PACK")
        limit = env.collective_timeout()
        if not self._group.wait(limit):
            free = _text({name: ray.available_resources().get(name, 0) for name in bundle})
            raise ConfigError(
                f"{world.sizes}, which asks for {world.size} ranks with {_text(bundle)} each, and for {limit:g} s the "
                f"Ray cluster had no place for them, with {free} free; end what else runs there, or add nodes"
            )
        nodes: dict[int, str] = placement_group_table(self._group)["bundles_to_node_id"]
        own = ray.get_runtime_context().get_node_id()
        order = sorted(nodes, key=lambda index: (nodes[index] != own, nodes[index], index))
        return [self._options(bundle, index) for index in order]

    def close(self) -> None:
        """Give the places back, and end what runs there."""
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None
        _membership.leave()

    def _options(self, bundle: Bundle, index: int) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        amounts = {"num_cpus": bundle.get("CPU", 0), "num_gpus": bundle.get("GPU", 0)}
        return {"scheduling_strategy": strategy, "max_restarts": 0, "max_task_retries": 0, **amounts}

    def _check_size(self, bundle: Bundle, world: World) -> None:
        nodes, num_ranks = _nodes(), world.size * self._num_engines
        most = sum(min(int(node.get(name, 0) // amount) for name, amount in bundle.items()) for node in nodes)
        if most < num_ranks:
            has = _text({name: sum(node.get(name, 0) for node in nodes) for name in bundle})
            address = ray.get_runtime_context().gcs_address
            engines = f" and data_parallel_size {self._num_engines}" if self._num_engines > 1 else ""
            raise ConfigError(
                f"{world.sizes}{engines}, which asks for {num_ranks} ranks with {_text(bundle)} each, but the Ray "
                f"cluster has {has} on {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}, room for {most} ranks; "
                f"`ray start --address={address}` on another machine adds it"
            )


def bundle_of(task: WorkerTask) -> Bundle:
    """What a rank reserves."""
    if task.backend.backend == "triton":
        return _gpu()
    if task.backend.backend == "auto" and any(node.get("GPU", 0) for node in _nodes()):
        return _gpu()
    return {"CPU": task.backend.num_threads or 1}


def _gpu() -> Bundle:
    return {"GPU": 1 / env.ranks_per_gpu()}


def _nodes() -> list[Bundle]:
    """The resources of each node that lives."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _text(amounts: Bundle) -> str:
    return ", ".join(f"{amount:g} {name}{'' if amount == 1 else 's'}" for name, amount in amounts.items())


class _Membership:
    """Of this process, which Ray knows once: its engines share it. One that the program itself began is left alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_engines = 0
        self._is_ours = False
        self._guard: subprocess.Popen[bytes] | None = None

    def join(self, *, may_start: bool) -> None:
        with self._lock:
            if not ray.is_initialized():
                before = raylets()
                _connect(may_start=may_start)
                self._is_ours, self._guard = True, guard(raylets() - before)
            self._num_engines += 1

    def leave(self) -> None:
        with self._lock:
            self._num_engines -= 1
            if self._num_engines == 0 and self._is_ours:
                self._is_ours = False
                ray.shutdown()
                if self._guard is not None:
                    self._guard.communicate()
                    self._guard = None


_membership = _Membership()


def _connect(*, may_start: bool) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise ConfigError(
            f"RAY_ADDRESS is {address!r}, a Ray client's: ranks connect with the engine, which therefore runs on a "
            "machine of the cluster; there, unset RAY_ADDRESS or set it to 'auto'"
        )
    if address == "local" and not may_start:
        raise ConfigError(_ONE_CLUSTER)
    _check_reachable(address)
    is_main = threading.current_thread() is threading.main_thread()
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        _init(may_start=may_start or bool(address))
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        where = f"the Ray cluster at RAY_ADDRESS={address} cannot be joined" if address else "Ray does not start"
        raise BackendUnavailableError(f"{where}: {error}; `ray status` says whether a cluster runs here") from error
    finally:
        if is_main and on_term is not None:
            signal.signal(signal.SIGTERM, on_term)  # Ray takes it


def _init(*, may_start: bool) -> None:
    options: dict[str, Any] = {"logging_level": logging.WARNING}
    if may_start:
        ray.init(include_dashboard=False, **options)
        return
    try:
        ray.init(address="auto", **options)
    except ConnectionError as error:
        raise ConfigError(_ONE_CLUSTER) from error


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return  # auto, local, or what Ray refuses
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except (OSError, OverflowError) as error:
        raise BackendUnavailableError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {error}; start one there with `ray start --head "
            f"--port={port}`, or unset RAY_ADDRESS"
        ) from error
