"""The engine is one sentence: schedule, execute, update."""

from __future__ import annotations

from collections.abc import Callable

from octavo.executor.interface import Executor
from octavo.messages import StepPlan, StepResult
from octavo.observe.events import EventLog, StepDone
from octavo.request import Request, SequenceId
from octavo.scheduler.scheduler import Scheduler, SequenceUpdate


class EngineCore:
    """Owner of the scheduler and the executor. One caller, one thread."""

    def __init__(
        self, scheduler: Scheduler, executor: Executor, events: EventLog, clock: Callable[[], float]
    ) -> None:
        self.scheduler = scheduler
        self._executor = executor
        self._events = events
        self._clock = clock

    def add_request(self, request: Request) -> None:
        self.scheduler.add_request(request)

    def abort(self, request_id: str) -> None:
        self.scheduler.abort(request_id)

    def finish_sequence(self, sequence_id: SequenceId, stop: str) -> None:
        """A stop string ended it, as only the output side can see."""
        self.scheduler.finish_sequence(sequence_id, "stop", stop)

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished

    def step(self) -> list[SequenceUpdate]:
        """One turn. Returns what changed; empty when there is nothing to do."""
        begin = self._clock()
        plan = self.scheduler.schedule()
        scheduled = self._clock()
        try:
            result = self._executor.execute(plan)
        except Exception as fault:
            return self.scheduler.fail(plan, f"{type(fault).__name__}: {fault}")
        executed = self._clock()
        updates = self.scheduler.update(plan, result)
        self._record(plan, result, begin, scheduled, executed)
        return updates

    def close(self) -> None:
        self._executor.close()

    def _record(self, plan: StepPlan, result: StepResult, begin: float, scheduled: float, executed: float) -> None:
        now = self._clock()
        self._events.write(
            StepDone(
                time=now,
                step=result.step_id,
                schedule_s=scheduled - begin,
                execute_s=executed - scheduled,
                update_s=now - executed,
                num_tokens=plan.num_tokens,
                num_seqs=len(plan.rows),
            )
        )
