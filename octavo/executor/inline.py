"""Executors with one worker in this very process.

InlineExecutor      a step is a function call: done when `submit` returns
LaunchingExecutor   a step is launched on a device: `submit` returns, the device goes on
ThreadedExecutor    a step runs on a thread of its own while the caller goes on; kernels hold no Python lock
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from octavo.messages import PendingStep, StepPlan, StepResult


class StepRunner(Protocol):
    """What an executor needs of a worker."""

    def execute(self, plan: StepPlan) -> StepResult: ...

    def close(self) -> None: ...


class StepLauncher(Protocol):
    """What an executor needs of a worker whose device computes by itself."""

    def begin(self, plan: StepPlan) -> PendingStep: ...

    def close(self) -> None: ...


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
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class LaunchingExecutor:
    """Kernels run in the order they are launched, so nothing waits here."""

    def __init__(self, worker: StepLauncher) -> None:
        self._worker: StepLauncher | None = worker

    def submit(self, plan: StepPlan) -> PendingStep:
        assert self._worker is not None, "a closed executor runs no step"
        try:
            return self._worker.begin(plan)
        except Exception as fault:
            failed: Future[StepResult] = Future()
            failed.set_exception(fault)
            return failed

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class ThreadedExecutor:
    def __init__(self, worker: StepRunner) -> None:
        self._worker = worker
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="octavo-worker")

    def submit(self, plan: StepPlan) -> PendingStep:
        return self._thread.submit(self._worker.execute, plan)

    def close(self) -> None:
        self._thread.shutdown()
        self._worker.close()
