"""ProcessExecutor: runs each worker in a child process, and sends it the same messages over a socket.

    this process                                        a worker's process (rank_process.py)
      WorkerTask ───────────────────────────────────▶   Worker(task)
          ◀──────────────── WorkerShape, or the exception that was raised there
      StepPlan ─────────────────────────────────────▶   submit
      a step's id ──────────────────────────────────▶   result of that step
          ◀──────────────── StepResult, or the fault of that step
      "measure" ────────────────────────────────────▶   bytes of each component
      end of file ──────────────────────────────────▶   close

A message is packed once, for all ranks. When a worker dies, its socket reports end of file at once, and the engine
ends: a model with a rank less computes nothing, so the others are killed. Log records of the workers are logged here.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace

from octavo import env
from octavo.distributed.world import Meeting, check_collectives
from octavo.executor.rank_process import MEASURE
from octavo.executor.ranks import GRACE_S, Ranks
from octavo.executor.remote import Remote
from octavo.kernels.ledger import Component
from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.worker.task import WorkerShape, WorkerTask


class ProcessExecutor:
    """Owner of the workers' processes. A step's result is that of the first rank."""

    def __init__(self, task: WorkerTask) -> None:
        """Raises the exception of a worker that could not be built."""
        self._ranks = Ranks()
        try:
            self._start(task)
            shapes = self._ranks.answers(None)
        except BaseException:
            self.close()
            raise
        for remote, shape in zip(self._ranks.remotes, shapes, strict=True):
            remote.place = shape.place
        self.shape: WorkerShape = shapes[0]
        if len(shapes) > 1:
            self.shape = replace(self.shape, ranks=tuple(shape.place for shape in shapes))
        self._limit = env.collective_timeout() + GRACE_S

    def submit(self, plan: StepPlan) -> PendingStep:
        assert self._ranks.remotes, "a closed executor runs no step"
        self._ranks.send(plan)
        return _RemoteStep(self._ranks, plan.step_id, self._limit)

    def measured(self) -> Mapping[Component, int]:
        """The first rank's: the others have as much, but for sizes that do not divide."""
        self._ranks.send(MEASURE)
        found: Mapping[Component, int] = self._ranks.answers(self._limit)[0]
        return found

    def close(self) -> None:
        self._ranks.close()

    def _start(self, task: WorkerTask) -> None:
        if task.world.size == 1:
            self._ranks.add(Remote(task))
            return
        check_collectives()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            meeting = Meeting(
                port=listener.getsockname()[1], listener=listener.fileno(), time_limit=env.collective_timeout()
            )
            for rank in range(task.world.size):
                self._ranks.add(Remote(replace(task, world=replace(task.world, rank=rank), meeting=meeting)))


@dataclass(frozen=True, slots=True, eq=False)
class _RemoteStep:
    """A PendingStep."""

    ranks: Ranks
    step_id: int
    limit: float

    def result(self) -> StepResult:
        self.ranks.send(self.step_id)
        result: StepResult = self.ranks.answers(self.limit)[0]
        return result
