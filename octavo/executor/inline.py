"""Executors with one worker in this very process.

InlineExecutor      a step is a function call: done when `submit` returns
ThreadedExecutor    a step runs on a thread of its own while the caller goes on; kernels hold no Python lock
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from octavo.executor.interface import PendingStep
from octavo.messages import StepPlan, StepResult


class StepRunner(Protocol):
    """What an executor needs of a worker."""

    def execute(self, plan: StepPlan) -> StepResult: ...


class InlineExecutor:
    def __init__(self, worker: StepRunner) -> None:
        self._worker: StepRunner | None = worker

    def submit(self, plan: StepPlan) -> PendingStep:
        assert self._worker is not None, "a closed executor runs no step"
        done: Future[StepResult] = Future()
        try:
            done.set_result(self._worker.execute(plan))
        except Exception as fault:
            done.set_exception(fault)
        return done

    def close(self) -> None:
        self._worker = None


class ThreadedExecutor:
    def __init__(self, worker: StepRunner) -> None:
        self._worker = worker
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="octavo-worker")

    def submit(self, plan: StepPlan) -> PendingStep:
        return self._thread.submit(self._worker.execute, plan)

    def close(self) -> None:
        self._thread.shutdown()
