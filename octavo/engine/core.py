"""EngineCore: the engine without text. A step is one sentence: schedule, execute, update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.cache.invariants import check
from octavo.cache.kv_cache import KVCache
from octavo.errors import EngineDeadError
from octavo.executor.executor import Executor
from octavo.messages import StepPlan, StepResult
from octavo.observe.events import EventLog, StepDone
from octavo.request import Request, SequenceId
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.step import SequenceUpdate


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's numbers at one moment. Blocks exclude the null block."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_used_blocks: int

    @property
    def kv_cache_usage(self) -> float:
        """Share of blocks in use, 0 to 1."""
        return self.num_used_blocks / self.num_blocks


class EngineCore:
    """Owner of the scheduler and the executor; reads the cache. One caller, one thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        cache: KVCache,
        executor: Executor,
        events: EventLog,
        clock: Callable[[], float],
        *,
        check_invariants: bool = False,
    ) -> None:
        self._scheduler = scheduler
        self._cache = cache
        self._executor = executor
        self._events = events
        self._clock = clock
        self._check_invariants = check_invariants

    def add_request(self, request: Request) -> None:
        self._scheduler.add_request(request)

    def abort(self, request_id: str) -> None:
        self._scheduler.abort(request_id)

    def finish_sequence(self, sequence_id: SequenceId, stop: str) -> bool:
        """End a sequence whose text has a stop string. False: it had ended already."""
        return self._scheduler.finish_sequence(sequence_id, "stop", stop)

    def fail_request(self, request_id: str, reason: str) -> None:
        """End a request whose output could not be made. If it has ended, nothing changes."""
        self._scheduler.end_request(request_id, "error", reason)

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def has_unfinished(self) -> bool:
        return self._scheduler.has_unfinished

    def step(self) -> list[SequenceUpdate]:
        """Run one step -> what changed. If the workers fail at it, its requests run alone until the one at fault is
        found and ends with the fault as its stop_reason; the others go on. Raises EngineDeadError if the device is
        lost."""
        begin = self._clock()
        plan = self._scheduler.schedule()
        scheduled = self._clock()
        try:
            result = self._executor.submit(plan).result()
        except EngineDeadError:
            raise  # the workers are lost: no later step can run either
        except Exception as fault:
            return self._scheduler.fail(f"{type(fault).__name__}: {fault}")
        return self._update(plan, result, begin, scheduled)

    def stats(self) -> EngineStats:
        pool = self._cache.pool
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_blocks=pool.num_owned + pool.num_available,
            num_used_blocks=pool.num_owned,
        )

    def reset_prefix_cache(self) -> bool:
        """Forget all cached blocks; sequences keep theirs. Always True; vLLM's may fail."""
        self._cache.forget()
        return True

    def close(self) -> None:
        self._executor.close()

    def _update(self, plan: StepPlan, result: StepResult, begin: float, scheduled: float) -> list[SequenceUpdate]:
        """Give a step's tokens to the scheduler, and log the step's times."""
        executed = self._clock()
        updates = self._scheduler.update(plan, result)
        if self._check_invariants:
            check(self._cache, self._scheduler.sequences)
        if self._events.is_on:
            now = self._clock()
            self._events.write(
                StepDone(
                    time=now,
                    step=result.step_id,
                    schedule_s=scheduled - begin,
                    execute_s=executed - scheduled,
                    update_s=now - executed,
                    num_tokens=sum(plan.num_scheduled_tokens),
                    num_seqs=len(plan.rows),
                )
            )
        return updates
