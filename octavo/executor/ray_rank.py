"""RayRank: the actor that holds one worker, in a process that Ray starts on one of its nodes.

Ray places it and starts it. From then on it talks with the engine as a child process does (`rank_process.py`), over a
connection of its own: a step costs one small message and no call of Ray's.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from dataclasses import replace

import ray

from octavo import env
from octavo.executor.door import knock
from octavo.executor.rank_process import run_rank
from octavo.executor.ray_link import WORDS, Errand, Spot
from octavo.observe.machine import installed_version

_LINGER_S = 5.0  # after which it ends by itself: a cluster whose head hangs does not end it


class RayRank:
    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def spot(self) -> Spot:
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return Spot(ray.util.get_node_ip_address(), context.get_node_id(), tuple(gpus), installed_version())

    def listen(self) -> int:
        """The port where the ranks meet, if this is the first of them."""
        self._listener = socket.create_server((ray.util.get_node_ip_address(), 0))
        port: int = self._listener.getsockname()[1]
        return port

    def serve(self, errand: Errand) -> None:
        """Until the engine closes its end, or is gone."""
        task = errand.task
        name = str(task.world.rank)
        words = knock(errand.address, WORDS + name)
        os.dup2(words.fileno(), 2)  # a crash's last words reach the engine, too
        connection = knock(errand.address, name)
        os.environ.update(errand.environment)
        if errand.gpus:
            os.environ[env.CUDA_VISIBLE_DEVICES] = ",".join(dict.fromkeys(errand.gpus))
        with suppress(OSError):  # a node without this folder has no use for paths that are relative to it
            os.chdir(errand.folder)
        if task.meeting is not None and self._listener is not None:
            task = replace(task, meeting=replace(task.meeting, listener=self._listener.detach()))
        run_rank(task, connection)
        end = threading.Timer(_LINGER_S, os._exit, (0,))
        end.daemon = True
        end.start()
