"""The executor with one worker in this very process.

as it is     `submit` begins the step: a host has done it then, a device goes on by itself
on_thread    a host's steps run on a thread of their own while the caller goes on; kernels hold no Python lock
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.worker.task import WorkerShape, WorkerTask
from octavo.worker.worker import Worker


class StepWorker(Protocol):
    """What an executor needs of a worker."""

    shape: WorkerShape

    def begin(self, plan: StepPlan) -> PendingStep: ...

    def close(self) -> None: ...


class InlineExecutor:
    @classmethod
    def of(cls, task: WorkerTask) -> InlineExecutor:
        worker = Worker(task)
        return cls(worker, on_thread=task.scheduler.async_scheduling is True and not worker.shape.is_asynchronous)

    def __init__(self, worker: StepWorker, *, on_thread: bool = False) -> None:
        self._worker: StepWorker | None = worker
        self._begin = worker.begin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-worker") if on_thread else None

    @property
    def shape(self) -> WorkerShape:
        assert self._worker is not None, "a closed executor has no worker"
        return self._worker.shape

    def submit(self, plan: StepPlan) -> PendingStep:
        assert self._worker is not None, "a closed executor runs no step"
        if self._thread is not None:
            return self._thread.submit(self._run, plan)
        try:
            return self._begin(plan)
        except Exception as fault:
            failed: Future[StepResult] = Future()
            failed.set_exception(fault)
            return failed

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        if self._worker is not None:
            self._worker.close()
            del self._begin
            self._worker = None

    def _run(self, plan: StepPlan) -> StepResult:
        return self._begin(plan).result()
