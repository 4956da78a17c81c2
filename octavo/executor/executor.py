"""Executor: runs plans on the workers and returns their results.

Worker             one worker in this process: `octavo/worker/worker.py` has an executor's methods itself
ThreadExecutor     the same, with its steps on a thread of their own
RankExecutor       workers in processes of their own, see `rank_executor.py`
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from octavo.kernels.block_mover import BlockMover, HostMover
from octavo.kernels.ledger import Component
from octavo.messages import AdapterRead, PendingStep, StepPlan
from octavo.structured.compiler import GrammarCompiler
from octavo.worker.task import WorkerShape, WorkerTask
from octavo.worker.worker import Worker


class StepExecutor(Protocol):
    """Runs plans in the order they are submitted: all that the engine's core needs."""

    def submit(self, plan: StepPlan) -> PendingStep:
        """Begin a step. It may be done when this returns, or run on while the caller does other work. A fault of the
        step is raised by `result`."""

    def close(self) -> None:
        """Free everything. No step can be submitted afterwards."""


class AdapterReader(Protocol):
    """Reads adapters that steps will put into slots."""

    def read_adapter(self, read: AdapterRead) -> None:
        """Begin to read an adapter, while steps go on."""

    def adapters_read(self, seconds: float) -> Mapping[int, str]:
        """The keys of adapters that all workers have read since the last call, or could not, with the reason. Waits so
        long for one."""


class Executor(StepExecutor, AdapterReader, Protocol):
    """shape: what its workers found when they were built."""

    @property
    def shape(self) -> WorkerShape: ...

    def measured(self) -> Mapping[Component, int]:
        """Bytes of each component of the first worker's memory, but the KV blocks."""

    def mover(self) -> BlockMover:
        """What moves KV blocks between the worker's pool and the host. Raises ConfigError where workers are in other
        processes."""

    def constrain(self, compiler: GrammarCompiler) -> None:
        """Compile the grammars of rows with it. Called before the first plan that has any."""


class ThreadExecutor:
    """Runs a host's steps on a thread while the caller goes on: kernels do not hold Python's lock."""

    def __init__(self, worker: Executor) -> None:
        self._worker = worker
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-worker")

    @property
    def shape(self) -> WorkerShape:
        return self._worker.shape

    def submit(self, plan: StepPlan) -> PendingStep:
        return self._thread.submit(lambda: self._worker.submit(plan).result())

    def measured(self) -> Mapping[Component, int]:
        return self._thread.submit(self._worker.measured).result()

    def mover(self) -> BlockMover:
        mover = self._worker.mover()
        assert isinstance(mover, HostMover), "steps run on a thread for a host's worker only"
        return mover.after(lambda: self._thread.submit(lambda: None))

    def constrain(self, compiler: GrammarCompiler) -> None:
        self._worker.constrain(compiler)

    def read_adapter(self, read: AdapterRead) -> None:
        self._thread.submit(self._worker.read_adapter, read)  # what it drops may be read by a step before

    def adapters_read(self, seconds: float) -> Mapping[int, str]:
        return self._worker.adapters_read(seconds)

    def close(self) -> None:
        self._thread.shutdown()
        self._worker.close()


def executor_here(task: WorkerTask, *, on_thread: bool = False) -> Executor:
    """One worker in this process. on_thread: the caller goes on while a step runs. A host's steps then get a thread; a
    device's need none."""
    worker = Worker(task)
    return ThreadExecutor(worker) if on_thread and not worker.shape.is_asynchronous else worker
