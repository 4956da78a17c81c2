"""ProcessExecutor: runs each worker in a child process, and sends it the same messages over a socket.

    this process                                        a worker's process (child.py)
      WorkerTask ───────────────────────────────────▶   Worker(task)
          ◀──────────────── WorkerShape, or the exception that was raised there
      StepPlan ─────────────────────────────────────▶   submit
      a step's id ──────────────────────────────────▶   result of that step
          ◀──────────────── StepResult, or the fault of that step
      "measure" ────────────────────────────────────▶   bytes of each component
      end of file ──────────────────────────────────▶   close

When a worker dies, its socket reports end of file at once, and the engine ends. Its log records are logged here.
"""

from __future__ import annotations

import logging
import pickle
import sys
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

from octavo.child import Child, begin
from octavo.errors import EngineDeadError, OctavoError
from octavo.executor.executor import Executor, executor_here
from octavo.kernels.ledger import Component
from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.models.gguf import GGUFFile
from octavo.observe.logging import LOGGER
from octavo.worker.task import WorkerShape, WorkerTask

_MEASURE = "measure"  # a message to the workers
PATIENCE_S = 10.0  # how long a worker may take to close


@dataclass(frozen=True, slots=True)
class _ProcessTask:
    """descriptor: the file descriptor of the worker's end of the socket."""

    worker: WorkerTask
    descriptor: int
    run_directory: None = None


class ProcessExecutor:
    """Owner of the workers' processes. A step's result is that of the first rank."""

    def __init__(self, task: WorkerTask) -> None:
        """Raises the exception of a worker that could not be built."""
        self._remotes: list[_Remote] = []
        try:
            for rank in range(task.world_size):
                self._remotes.append(_Remote(replace(task, rank=rank)))
            self.shape: WorkerShape = _answer(self._remotes)
        except BaseException:
            self.close()
            raise

    def submit(self, plan: StepPlan) -> PendingStep:
        assert self._remotes, "a closed executor runs no step"
        for remote in self._remotes:
            remote.send(plan)
        return _RemoteStep(self._remotes, plan.step_id)

    def measured(self) -> Mapping[Component, int]:
        for remote in self._remotes:
            remote.send(_MEASURE)
        found: Mapping[Component, int] = _answer(self._remotes)
        return found

    def close(self) -> None:
        for remote in self._remotes:
            remote.connection.close()
        for remote in self._remotes:
            remote.child.reap(PATIENCE_S)
        self._remotes = []


@dataclass(frozen=True, slots=True, eq=False)
class _RemoteStep:
    """A PendingStep."""

    remotes: list[_Remote]
    step_id: int

    def result(self) -> StepResult:
        for remote in self.remotes:
            remote.send(self.step_id)
        result: StepResult = _answer(self.remotes)
        return result


def _answer(remotes: list[_Remote]) -> Any:
    """The first rank's next message, once all ranks have sent theirs. Raises the exception of any of them."""
    answers = [remote.receive() for remote in remotes]
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers[0]


class _Remote:
    """One worker, as its parent sees it."""

    def __init__(self, task: WorkerTask) -> None:
        self.connection, theirs = Pipe()
        self._died: str | None = None
        with theirs:
            process_task = _ProcessTask(task, theirs.fileno())
            name, target = f"worker {task.rank}", f"{__name__}:main"
            self.child = Child(name, target, process_task, inherited=(theirs.fileno(),))

    def send(self, message: StepPlan | int | str) -> None:
        """Raises EngineDeadError once the worker is gone."""
        self._talk(lambda: self.connection.send(message))

    def receive(self) -> Any:
        """The worker's next message, which may be an exception. Raises EngineDeadError once the worker is gone."""
        while isinstance(said := self._talk(self.connection.recv), logging.LogRecord):
            LOGGER.handle(said)
        return said

    def _talk(self, action: Callable[[], Any]) -> Any:
        if self._died is None:
            try:
                return action()
            except (EOFError, OSError):
                self._died = f"the process of {self.child.name} ended: {self.child.reap(PATIENCE_S)}"
            except BaseException:  # Ctrl-C in the middle of a message: later ones cannot be read
                self._died = f"the process of {self.child.name} was left in the middle of a message"
                self.child.kill()
                raise
        raise EngineDeadError(self._died)


def main() -> None:
    """The worker's process."""
    task, _ = begin()
    connection = Connection(task.descriptor)
    LOGGER.addHandler(_SendingHandler(connection))
    LOGGER.propagate = False
    try:
        executor = executor_here(task.worker)
    except Exception as error:
        connection.send(_portable(error))
        sys.exit(1)
    connection.send(_without_maps(executor.shape))
    try:
        _serve(executor, connection)
    finally:
        executor.close()


def _serve(executor: Executor, connection: Connection) -> None:
    """Serve until the parent closes its end or is gone. Send only what the parent waits for: if both ends sent at once,
    both would block."""
    begun: deque[tuple[int, PendingStep]] = deque()
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            return
        if isinstance(message, StepPlan):
            begun.append((message.step_id, executor.submit(message)))
            continue
        if message == _MEASURE:
            connection.send(executor.measured())
            continue
        step_id, step = begun.popleft()
        while step_id != message:  # the parent does not wait for a plan that computes nothing
            step_id, step = begun.popleft()
        try:
            connection.send(step.result())
        except Exception as fault:
            connection.send(_portable(fault))


def _without_maps(shape: WorkerShape) -> WorkerShape:
    """The shape with the path of a mapped file in its place: the mapping cannot cross processes."""
    source = shape.tokenizer_source
    return replace(shape, tokenizer_source=source.path) if isinstance(source, GGUFFile) else shape


def _portable(fault: Exception) -> Exception:
    """The fault in a form that can be raised in the parent. One that is not ours gets a note with its traceback."""
    if not isinstance(fault, OctavoError):
        fault.add_note(f"in the worker's process:\n{''.join(traceback.format_exception(fault))}")
    try:
        pickle.loads(pickle.dumps(fault))
    except Exception:
        return RuntimeError(f"{type(fault).__name__}: {fault}")
    return fault


class _SendingHandler(logging.Handler):
    """Sends this process's log records to the parent."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._connection.send(record)
