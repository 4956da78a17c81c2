"""ChildProcesses: starts the ranks of a model as children of this process, all on this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Pipe

from octavo import env
from octavo.child import Child
from octavo.distributed.world import LOOPBACK, Meeting, check_collectives
from octavo.executor.rank_process import RankTask
from octavo.executor.remote import Remote, limit_waits
from octavo.worker.task import WorkerTask

TARGET = "octavo.executor.rank_process:main"


class ChildProcesses:
    """Implements `octavo.executor.rank_executor.Launcher`."""

    def start(self, task: WorkerTask) -> Iterator[Remote]:
        if task.world.size == 1:
            yield _child(task)
            return
        check_collectives()
        with socket.create_server((LOOPBACK, 0)) as listener:
            meeting = Meeting(
                port=listener.getsockname()[1], listener=listener.fileno(), time_limit=env.collective_timeout()
            )
            for rank in range(task.world.size):
                yield _child(replace(task, world=replace(task.world, rank=rank), meeting=meeting))

    def close(self) -> None:
        """Its children have ended."""


def _child(task: WorkerTask) -> Remote:
    connection, theirs = Pipe()
    meeting, rank = task.meeting, task.world.rank
    with theirs:
        inherited = [theirs.fileno()]
        if meeting is not None:
            limit_waits(connection, meeting.time_limit)
            inherited += [meeting.listener] if rank == 0 else []
        own = RankTask(task, theirs.fileno())
        child = Child(f"worker {rank}", TARGET, own, inherited, is_one_of_many=meeting is not None)
    return Remote(task.world, connection, child, child.process.stderr)
