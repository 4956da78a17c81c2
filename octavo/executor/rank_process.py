"""A worker's process: builds the worker from its task, then runs the steps that its parent sends.

Its log records go to the parent, and so do its exceptions, in a form that can be raised there.
"""

from __future__ import annotations

import logging
import pickle
import sys
import traceback
from collections import deque
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from octavo.child import begin, loading
from octavo.errors import OctavoError
from octavo.executor.executor import Executor, executor_here
from octavo.executor.packing import NextStep, packed, unpacked
from octavo.executor.rank_mover import BeginMoves, FenceAt, RankMoves
from octavo.messages import AdapterRead, AdaptersRead, PendingStep
from octavo.models.gguf import GGUFFile
from octavo.observe.logging import LOGGER
from octavo.structured.compiler import GrammarCompiler
from octavo.worker.task import WorkerShape, WorkerTask

MEASURE = "measure"  # a message: how much memory each component has


@dataclass(frozen=True, slots=True)
class RankTask:
    """descriptor: the file descriptor of the worker's end of the socket."""

    worker: WorkerTask
    descriptor: int
    run_directory: None = None


def main() -> None:
    task, _ = begin()
    if not run_rank(task.worker, Connection(task.descriptor)):
        sys.exit(1)


def run_rank(task: WorkerTask, connection: Connection) -> bool:
    """Build the worker, and serve its parent until it closes its end. False: it could not be built, and the parent has
    the reason."""
    LOGGER.addHandler(_SendingHandler(connection))
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO)  # the parent chooses what it shows
    try:
        with loading():
            executor = executor_here(task, on_thread=task.world.pipeline_parallel_size > 1)
    except Exception as error:
        connection.send(portable(error))
        return False
    connection.send(_without_maps(executor.shape))
    try:
        world = task.world
        _serve(executor, connection, reports=world.rank == world.reporter)
    finally:
        executor.close()
    return True


def _serve(executor: Executor, connection: Connection, *, reports: bool) -> None:
    """Serve until the parent closes its end or is gone. Send only what the parent waits for: if both ends sent at once,
    both would block."""
    steps = _BegunSteps(connection, reports=reports)
    moves: RankMoves | None = None
    while True:
        try:
            message = unpacked(connection.recv_bytes())
        except (EOFError, OSError):
            return
        if isinstance(message, NextStep):
            if message.asked:
                steps.answer(message.asked)
            steps.begin(message.plan.step_id, executor.submit(message.plan))
            continue
        if isinstance(message, GrammarCompiler):
            executor.constrain(message)
            continue
        if isinstance(message, AdapterRead):
            executor.read_adapter(message)
            continue
        if isinstance(message, AdaptersRead):
            connection.send(executor.adapters_read(message.seconds))
            continue
        if isinstance(message, BeginMoves):
            moves = RankMoves(message, connection, executor.mover())
            continue
        if isinstance(message, FenceAt):
            assert moves is not None, "moves have begun"
            moves.fence(message.number)
            continue
        if message == MEASURE:
            connection.send(executor.measured())
            continue
        steps.answer(message)


class _BegunSteps:
    """Steps whose results the parent may ask for. A rank that does not report tells that a step is done, and nothing
    else of it."""

    def __init__(self, connection: Connection, *, reports: bool) -> None:
        self._connection, self._reports = connection, reports
        self._steps: deque[tuple[int, PendingStep]] = deque()

    def begin(self, step_id: int, step: PendingStep) -> None:
        self._steps.append((step_id, step))

    def answer(self, asked: int) -> None:
        """Send a step's result, or its fault, once it is done."""
        step_id, step = self._steps.popleft()
        while step_id != asked:  # the parent does not wait for a plan that computes nothing
            step_id, step = self._steps.popleft()
        try:
            result = step.result()
            self._connection.send_bytes(packed(result if self._reports else step_id))
        except Exception as fault:
            self._connection.send(portable(fault))


def _without_maps(shape: WorkerShape) -> WorkerShape:
    """The shape with the path of a mapped file in its place: the mapping cannot cross processes."""
    source = shape.tokenizer_source
    return replace(shape, tokenizer_source=source.path) if isinstance(source, GGUFFile) else shape


def portable(fault: Exception) -> Exception:
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
