"""ThreadedRanks: the ranks of a model as threads of one process, so that tests start them in no time.

They are the workers of `octavo/worker/worker.py`, and meet through gloo as processes do. Every result of a step must be
the same on all of them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Pipe
from typing import TypeVar

from octavo.distributed.collectives import Collectives
from octavo.distributed.world import Meeting, World
from octavo.executor.rank_mover import BeginMoves, FenceAt, RankMoves, RanksMover
from octavo.kernels.ledger import Component
from octavo.messages import AdapterRead, StepPlan, StepResult
from octavo.structured.compiler import GrammarCompiler
from octavo.worker.task import WorkerTask
from octavo.worker.worker import Worker

T = TypeVar("T")


def meeting(time_limit: float = 20.0) -> Meeting:
    """A place to meet, for one set of ranks."""
    listener = socket.create_server(("127.0.0.1", 0))
    return Meeting(port=listener.getsockname()[1], listener=listener.detach(), time_limit=time_limit)


def on_all_ranks(num_ranks: int, run: Callable[[Collectives], T], *, in_order: bool = False) -> list[T]:
    """What the function returns on each of some ranks, which are threads."""
    place = meeting()

    def one(rank: int) -> T:
        return run(Collectives(World(rank=rank, tensor_parallel_size=num_ranks), place, in_order=in_order))

    with ThreadPoolExecutor(num_ranks) as threads:
        return list(threads.map(one, range(num_ranks)))


class ThreadedRanks:
    """Implements `octavo.executor.executor.Executor`."""

    def __init__(self, task: WorkerTask) -> None:
        place = meeting()
        ranks = range(task.world.size)
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"rank {rank}") for rank in ranks]
        tasks = [replace(task, world=replace(task.world, rank=rank), meeting=place) for rank in ranks]
        built = [thread.submit(Worker, each) for thread, each in zip(self._threads, tasks, strict=True)]
        self._workers = [each.result() for each in built]
        self._world = task.world
        self._drawn: list[StepResult] = []
        self._reading: dict[int, list[str | None]] = {}
        self._mover: RanksMover | None = None
        self._moves: dict[int, RankMoves] = {}
        shapes = [worker.shape for worker in self._workers]
        targets = dict.fromkeys(each for shape in shapes for each in shape.adapter_targets)
        self.shape = replace(shapes[0], adapter_targets=tuple(targets))

    def submit(self, plan: StepPlan) -> _Step:
        plan = self._told(plan)
        pairs = zip(self._threads, self._workers, strict=True)
        return _Step([thread.submit(_run, worker, plan) for thread, worker in pairs], self._world.reporter, self._drawn)

    def _told(self, plan: StepPlan) -> StepPlan:
        """With what the last stage has drawn since."""
        plan = replace(plan, drawn=tuple(self._drawn))
        self._drawn.clear()
        return plan

    def measured(self) -> Mapping[Component, int]:
        return self._workers[0].measured()

    def read_adapter(self, read: AdapterRead) -> None:
        for thread, worker in zip(self._threads, self._workers, strict=True):
            thread.submit(worker.read_adapter, read)
        self._reading[read.key] = [None] * len(self._workers)

    def adapters_read(self, seconds: float) -> Mapping[int, str]:
        for rank, worker in enumerate(self._workers):
            for key, fault in worker.adapters_read(seconds).items():
                self._reading[key][rank] = fault
        done = {key: [*faults] for key, faults in self._reading.items() if None not in faults}
        for key in done:
            del self._reading[key]
        return {key: next((fault for fault in faults if fault), "") for key, faults in done.items()}

    def constrain(self, compiler: GrammarCompiler) -> None:
        for worker in self._workers:
            worker.constrain(compiler)

    def mover(self) -> RanksMover:
        """As processes have it: each rank's moves come over a socket, and fences among its steps."""
        if self._mover is None:
            self._pipes = [Pipe() for _ in self._workers]
            rank_bytes = self.shape.layout.block_bytes
            self._mover = RanksMover([ours for ours, _ in self._pipes], rank_bytes, self._tell_moves, 20.0)
        return self._mover

    def _tell_moves(self, message: BeginMoves | FenceAt) -> None:
        for rank, thread in enumerate(self._threads):
            thread.submit(self._hear, rank, message)

    def _hear(self, rank: int, message: BeginMoves | FenceAt) -> None:
        if isinstance(message, BeginMoves):
            self._moves[rank] = RankMoves(message, self._pipes[rank][1], self._workers[rank].mover())
        else:
            self._moves[rank].fence(message.number)

    def close(self) -> None:
        if self._mover is not None:
            self._mover.close()
        for thread, worker in zip(self._threads, self._workers, strict=True):
            thread.submit(worker.close).result()
            thread.shutdown()


@dataclass(frozen=True, slots=True)
class _Step:
    """A PendingStep."""

    results: list[Future[StepResult]]
    reporter: int
    drawn: list[StepResult]

    def result(self) -> StepResult:
        first, *others = [each.result() for each in self.results][self.reporter :]
        assert all(other == first for other in others), f"ranks of the last stage differ: {first} and {others}"
        self.drawn.append(first)
        return first


def _run(worker: Worker, plan: StepPlan) -> StepResult:
    return worker.submit(plan).result()
