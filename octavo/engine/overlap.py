"""EngineCore with overlapped steps: the next step is planned while this one runs.

    plain        schedule 1 | execute 1 ........ | update 1 | schedule 2 | execute 2 ........ | update 2
    overlapped   schedule 1 | execute 1 ........ execute 2 ........ execute 3 ........
                            schedule 2 | update 1 | schedule 3 | update 2 | ...

The scheduler plans the position of a token before it is known; the worker fills it in from its own rows. A
sequence that turns out to have ended has computed one token too many, which is dropped. Tokens equal those of
EngineCore; tests compare them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.engine.core import EngineCore
from octavo.errors import EngineDeadError
from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.scheduler.step import SequenceUpdate


@dataclass(frozen=True, slots=True)
class _Begun:
    """A step that was submitted to the workers, and when its planning began and ended."""

    plan: StepPlan
    pending: PendingStep
    begin: float
    scheduled: float


class OverlappedCore(EngineCore):
    """An EngineCore that keeps one step submitted ahead. Its executor must run steps asynchronously, in the order in
    which they are submitted."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._held: _Begun | None = None

    @property
    def has_unfinished(self) -> bool:
        return self._held is not None or super().has_unfinished

    def step(self) -> list[SequenceUpdate]:
        """Submit the next step, then take the result of the one before it."""
        held, self._held = self._held, self._begin()
        if held is None:
            return []
        try:
            result = held.pending.result()
        except EngineDeadError:
            raise  # no later step can be carried out either
        except Exception as fault:
            return self._fail(fault)
        return self._update(held.plan, result, held.begin, held.scheduled)

    def close(self) -> None:
        if self._held is not None:
            self._wait_out(self._held.pending)
        super().close()

    def _begin(self) -> _Begun | None:
        """Plan and submit a step. A plan that computes nothing only updates the workers' rows: nobody awaits it."""
        begin = self._clock()
        plan = self._scheduler.schedule()
        scheduled = self._clock()
        begun = _Begun(plan, self._executor.submit(plan), begin, scheduled)
        if plan.rows:
            return begun
        self._scheduler.update(plan, StepResult(plan.step_id, []))
        return None

    def _fail(self, fault: Exception) -> list[SequenceUpdate]:
        """The step that was submitted since depends on the one that failed, so it ends too."""
        if self._held is not None:
            self._wait_out(self._held.pending)
            self._held = None
        return self._scheduler.fail(f"{type(fault).__name__}: {fault}")

    @staticmethod
    def _wait_out(pending: PendingStep) -> None:
        """Wait for a step, and drop its result or fault."""
        try:
            pending.result()
        except Exception:
            return
