"""RayCluster: the places that a model's ranks have in a Ray cluster, which this process joins.

    the program's own, RAY_ADDRESS, or one on this machine   is joined
    none                                                     one is started on this machine, and ends with the engine;
                                                             engines that share requests share a cluster, which must
                                                             run already

A place is a bundle of one placement group: a GPU where the cluster has GPUs and the backend may use them, else cores.
Ranks are packed on as few nodes as possible; those of a node have neighbouring numbers, and the engine's node is first.
"""

from __future__ import annotations

import logging
import socket
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
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

    def __init__(self, address: str, num_engines: int) -> None:
        """address: empty: of this machine. num_engines: with such ranks, which reserve their places in the same
        cluster."""
        self._group: PlacementGroup | None = None
        self._num_engines = num_engines
        before = raylets()
        _connect(address, may_start=num_engines == 1)
        self._guard = guard(raylets() - before)  # its input ends with this process

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


def _connect(address: str, *, may_start: bool) -> None:
    if address.startswith("ray://"):
        raise ConfigError(
            f"RAY_ADDRESS is {address!r}, a Ray client's: ranks connect with the engine, which therefore runs on a "
            "machine of the cluster; there, unset RAY_ADDRESS or set it to 'auto'"
        )
    if address == "local" and not may_start:
        raise ConfigError(_ONE_CLUSTER)
    _check_reachable(address)
    try:
        _init(address, may_start=may_start)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        where = f"the Ray cluster at RAY_ADDRESS={address} cannot be joined" if address else "Ray does not start"
        raise BackendUnavailableError(f"{where}: {error}; `ray status` says whether a cluster runs here") from error


def _init(address: str, *, may_start: bool) -> None:
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address or may_start:
        ray.init(address=address or None, include_dashboard=False, **options)
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
