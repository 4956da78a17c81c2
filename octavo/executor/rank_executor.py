"""RankExecutor: runs each worker in a process of its own, and sends all of them the same messages over sockets.

    this process                                        a worker's process (rank_process.py)
      WorkerTask ───────────────────────────────────▶   Worker(task)
          ◀──────────────── WorkerShape, or the exception that was raised there
      NextStep: a StepPlan ─────────────────────────▶   submit
      a step's id ──────────────────────────────────▶   result of that step
          ◀──────────────── StepResult, or the fault of that step
      "measure" ────────────────────────────────────▶   bytes of each component
      GrammarCompiler ──────────────────────────────▶   compiles the grammars of rows from now on
      AdapterRead ──────────────────────────────────▶   reads an adapter on a thread
      AdaptersRead ─────────────────────────────────▶   waits for one
          ◀──────────────── keys of adapters that it has read, and faults
      BeginMoves, FenceAt ──────────────────────────▶   see rank_mover.py
      end of file ──────────────────────────────────▶   close

    steps that overlap, on hosts       plan 1 | plan 2, ask 1       | plan 3, ask 2       |            this process
                                              | step 1 ............ | result 1, step 2 .. | result 2   the rank's

A host's rank begins no step before the last one is done, so the next plan carries the question for that one's result:
the rank finds both as it is done, and nobody waits for the other. A GPU's rank launches the next step first, and is
asked then.

A message is packed once, for all ranks. When a worker dies, its socket reports end of file at once, and the engine
ends: a model with a rank less computes nothing, so the others are killed. Log records of the workers are logged here.

A launcher starts the processes: `processes.py` on this machine, `ray.py` on the machines of a Ray cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from octavo import env
from octavo.executor.packing import NextStep
from octavo.executor.rank_process import MEASURE
from octavo.executor.ranks import GRACE_S, Ranks
from octavo.executor.remote import Remote
from octavo.kernels.block_mover import BlockMover
from octavo.kernels.ledger import Component
from octavo.messages import AdapterRead, AdaptersRead, PendingStep, StepPlan, StepResult
from octavo.structured.compiler import GrammarCompiler
from octavo.worker.task import WorkerShape, WorkerTask

if TYPE_CHECKING:
    from octavo.executor.rank_mover import RanksMover


class Launcher(Protocol):
    """Starts the processes of a model's ranks."""

    def start(self, task: WorkerTask) -> Iterator[Remote]:
        """All ranks, in order, each with its own task."""

    def close(self) -> None:
        """After the processes have ended, or been killed."""


class RankExecutor:
    """Owner of the workers' processes. A step's result is that of the reporter, and other stages learn of it from the
    next plan."""

    def __init__(self, task: WorkerTask, launcher: Launcher) -> None:
        """Raises the exception of a worker that could not be built."""
        self._ranks, self._launcher = Ranks(), launcher
        self._mover: RanksMover | None = None
        self._reporter = task.world.reporter
        #: by key, of each rank: why it could not read an adapter; empty: it has; None: it is reading
        self._reading: dict[int, list[str | None]] = {}
        self._drawn: list[StepResult] | None = [] if task.world.pipeline_parallel_size > 1 else None
        try:
            for remote in launcher.start(task):
                self._ranks.add(remote)
            shapes = self._ranks.answers(None)
        except BaseException:
            self.close()
            raise
        for remote, shape in zip(self._ranks.remotes, shapes, strict=True):
            remote.found(shape.place)
        self.shape: WorkerShape = shapes[0]
        if len(shapes) > 1:
            self.shape = replace(
                self.shape,
                ranks=tuple(remote.place for remote in self._ranks.remotes),
                adapter_targets=tuple(dict.fromkeys(each for shape in shapes for each in shape.adapter_targets)),
            )
        self._limit = env.collective_timeout() + GRACE_S
        self._asks_along = not self.shape.is_asynchronous and task.world.pipeline_parallel_size == 1
        self._last: _RemoteStep | None = None  # that nobody has asked for

    def submit(self, plan: StepPlan) -> PendingStep:
        assert self._ranks.remotes, "a closed executor runs no step"
        if self._drawn:
            plan = replace(plan, drawn=tuple(self._drawn))
            self._drawn.clear()
        last = self._last if self._last is not None and not self._last.is_asked else None
        self._ranks.send(NextStep(plan, 0 if last is None else last.step_id))
        if last is not None:
            last.is_asked = True
        step = _RemoteStep(self._ranks, plan.step_id, self._limit, self._reporter, self._drawn)
        self._last = step if self._asks_along and plan.rows else None
        return step

    def measured(self) -> Mapping[Component, int]:
        """The first rank's: the others have as much, but for sizes that do not divide."""
        self._ranks.send(MEASURE)
        found: Mapping[Component, int] = self._ranks.answers(self._limit)[0]
        return found

    def mover(self) -> BlockMover:
        """One, however often it is asked for. Its ranks must be on this machine."""
        if self._mover is None:
            from octavo.executor.rank_mover import RanksMover  # engines that hand on no blocks run without its code

            connections = [remote.connection for remote in self._ranks.remotes]
            self._mover = RanksMover(connections, self.shape.layout.block_bytes, self._ranks.send, self._limit)
        return self._mover

    def constrain(self, compiler: GrammarCompiler) -> None:
        self._ranks.send(compiler)

    def read_adapter(self, read: AdapterRead) -> None:
        self._ranks.send(read)
        self._reading[read.key] = [None] * len(self._ranks.remotes)

    def adapters_read(self, seconds: float) -> Mapping[int, str]:
        """One that a rank has not read is not read; those that have it drop it with the next one."""
        self._ranks.send(AdaptersRead(seconds))
        for rank, found in enumerate(self._ranks.answers(self._limit)):
            for key, fault in found.items():
                self._reading[key][rank] = fault
        done = {key: faults for key, faults in self._reading.items() if None not in faults}
        for key in done:
            del self._reading[key]
        return {key: next((fault for fault in faults if fault), "") for key, faults in done.items()}

    def close(self) -> None:
        if self._mover is not None:
            self._mover.close()
        self._ranks.close()
        self._launcher.close()


@dataclass(slots=True, eq=False)
class _RemoteStep:
    """A PendingStep. is_asked: a later plan has asked for its result."""

    ranks: Ranks
    step_id: int
    limit: float
    reporter: int
    drawn: list[StepResult] | None  # what other stages have not learned yet
    is_asked: bool = False

    def result(self) -> StepResult:
        if not self.is_asked:
            self.ranks.send(self.step_id)
            self.is_asked = True
        result: StepResult = self.ranks.answers(self.limit)[self.reporter]
        if self.drawn is not None:
            self.drawn.append(StepResult(self.step_id, result.sampled_token_ids, result.offsets))
        return result
