"""The engine without text. A step is one sentence: schedule, execute, update.

EngineCore         schedule 1 | execute 1 ........ | update 1 | schedule 2 | execute 2 ........ | update 2
OverlappedCore     schedule 1 | execute 1 ........ execute 2 ........ execute 3 ........
                                schedule 2 | update 1 | schedule 3 | update 2 | ...

OverlappedCore plans the position of a token before it is known; the worker fills it in from its own rows. A sequence
that turns out to have ended has computed one token too many, which is dropped. Tokens equal those of EngineCore; tests
compare them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.cache.invariants import check
from octavo.cache.kv_cache import KVCache
from octavo.cache.memory_now import MemoryNow, memory_now
from octavo.cache.sharing import sharing_of
from octavo.engine.core_protocol import EngineStats
from octavo.engine.grammar_gate import GrammarGate, refused_update
from octavo.engine.snapshot import take_snapshot
from octavo.errors import EngineDeadError, InvalidRequestError
from octavo.executor.executor import AdapterReader, StepExecutor
from octavo.lora_request import LoRARequest
from octavo.messages import PendingStep, StepPlan, StepResult
from octavo.observe.event_log import EventLog
from octavo.observe.events import StepDone
from octavo.request import Request, SequenceId
from octavo.scheduler.awaited_adapters import AwaitedAdapters
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.step import SequenceUpdate

if TYPE_CHECKING:
    from octavo.engine.adapter_book import AdapterBook

#: seconds that a step waits for a grammar or an adapter, if there is nothing to compute
GATE_S = 0.01


class EngineCore:
    """Owner of the scheduler, the cache and the executor. One caller, one thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        cache: KVCache,
        executor: StepExecutor,
        events: EventLog,
        clock: Callable[[], float],
        *,
        check_invariants: bool = False,
        gate: GrammarGate | None = None,
        adapters: AdapterBook | None = None,
        reader: AdapterReader | None = None,
    ) -> None:
        """gate: None if no request has a grammar. adapters, reader: None if no request may have one."""
        self.adapters = adapters
        self._reader = reader
        self._gate = gate
        self._gated = {} if gate is None else gate.waiting
        #: takes a request that need not wait for its grammar
        self.admit: Callable[[Request], None] = self.enter
        self._scheduler = scheduler
        self.cache = cache
        self.executor = executor
        self._events = events
        self._clock = clock
        self._check_invariants = check_invariants

    def add_request(self, request: Request) -> None:
        if request.lora_request is not None:
            assert self.adapters is not None, "requests have adapters where the engine's options say so"
            request.adapter = self.adapters.find(request.lora_request)
        if not request.is_constrained or self._gate is None or not self._gate.holds(request):
            self.admit(request)

    def enter(self, request: Request, *, is_held: bool = False) -> None:
        """Let a request wait for its turn. is_held: until `release`, for what it is to start with."""
        self._scheduler.add_request(request, is_held=is_held)

    def release(self, request: Request) -> None:
        self._scheduler.release(request)

    def abort(self, request_id: str) -> None:
        if self._gated.pop(request_id, None) is None:
            self._scheduler.abort(request_id)

    def finish_sequence(self, sequence_id: SequenceId, stop: str) -> bool:
        """End a sequence whose text has a stop string. False: it had ended already."""
        return self._scheduler.finish_sequence(sequence_id, "stop", stop)

    def fail_request(self, request_id: str, reason: str) -> None:
        """End a request whose output could not be made. If it has ended, nothing changes."""
        self._gated.pop(request_id, None)
        self._scheduler.end_request(request_id, "error", reason)

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting + len(self._gated)

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def num_used_blocks(self) -> int:
        """KV blocks that sequences hold, each counted once."""
        return self.cache.pool.num_owned

    @property
    def has_unfinished(self) -> bool:
        awaited = self._scheduler.awaited
        return self._scheduler.has_unfinished or bool(self._gated) or (awaited is not None and awaited.is_busy)

    def step(self) -> list[SequenceUpdate]:
        """Run one step -> what changed. If the workers fail at it, its requests run alone until the one at fault is
        found and ends with the fault as its stop_reason; the others go on. Raises EngineDeadError if the device is
        lost."""
        updates = self._pass_gate() if self._gated else []
        if (awaited := self._scheduler.awaited) is not None and awaited.is_busy:
            updates += self._read_adapters(awaited)
        return updates + self._step() if updates else self._step()

    def _read_adapters(self, awaited: AwaitedAdapters) -> list[SequenceUpdate]:
        """Have workers read the adapters that requests wait for -> the ends of those whose adapter cannot be read."""
        assert self._reader is not None, "workers read adapters where requests have some"
        for read in awaited.to_read():
            self._reader.read_adapter(read)
        faults = self._reader.adapters_read(0.0 if self._scheduler.has_unfinished else GATE_S)
        return [update for key, fault in faults.items() for update in awaited.were_read(key, fault)]

    def _pass_gate(self) -> list[SequenceUpdate]:
        """Let requests whose grammars are compiled wait for their turns -> the ends of those that cannot be served."""
        assert self._gate is not None, "requests wait there"
        refused = []
        for request, reason in self._gate.take_ready(0.0 if self._scheduler.has_unfinished else GATE_S):
            try:
                if reason is None:
                    self.admit(request)
            except InvalidRequestError as error:
                reason = str(error)
            if reason is not None:
                refused.append(refused_update(request, reason))
        return refused

    def _step(self) -> list[SequenceUpdate]:
        """One step: schedule, execute, update."""
        begin = self._clock()
        plan = self._scheduler.schedule()
        scheduled = self._clock()
        try:
            result = self.executor.submit(plan).result()
        except EngineDeadError:
            raise  # the workers are lost: no later step can run either
        except Exception as fault:
            return self._scheduler.fail(f"{type(fault).__name__}: {fault}")
        return self._update(plan, result, begin, scheduled)

    def stats(self) -> EngineStats:
        pool, shared = self.cache.pool, sharing_of(self.cache, self._scheduler.sequences)
        started = self._events.started
        slot_bytes = started.block_bytes / started.block_size if started else 0.0
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_blocks=pool.num_owned + pool.num_available,
            num_used_blocks=pool.num_owned,
            num_unshared_blocks=shared.num_unshared_blocks,
            kv_bytes_read=round(shared.num_slots_read * slot_bytes),
            kv_bytes_read_unshared=round(shared.num_slots_read_unshared * slot_bytes),
        )

    def memory_now(self) -> MemoryNow:
        return memory_now(self.cache, self._scheduler.sequences)

    def change_adapters(self, load: LoRARequest | None = None, unload: int | None = None) -> list[LoRARequest]:
        if self.adapters is None:
            raise InvalidRequestError("there are no adapters: enable_lora is False; set it to True")
        return self.adapters.change(load, unload)

    def reset_prefix_cache(self) -> bool:
        """Forget all cached blocks; sequences keep theirs. Always True; vLLM's may fail."""
        self.cache.forget()
        return True

    def close(self) -> None:
        if self._gate is not None:
            self._gate.close()
        self.executor.close()

    def _update(self, plan: StepPlan, result: StepResult, begin: float, scheduled: float) -> list[SequenceUpdate]:
        """Give a step's tokens to the scheduler, and log the step's times."""
        executed = self._clock()
        updates = self._scheduler.update(plan, result)
        if self._check_invariants:
            check(self.cache, self._scheduler.sequences)
        if self._events.is_on:
            now, step = self._clock(), result.step_id
            num_tokens, num_seqs = sum(plan.num_scheduled_tokens), len(plan.rows)
            times = {"schedule_s": scheduled - begin, "execute_s": executed - scheduled, "update_s": now - executed}
            self._events.write(StepDone(now, step, **times, num_tokens=num_tokens, num_seqs=num_seqs))
            if len(self._events.newer) >= self._events.half:
                self._events.begin_half(take_snapshot(now, self._scheduler, self.cache))
        return updates


@dataclass(frozen=True, slots=True)
class BegunStep:
    """A step that was submitted to the workers, and when its planning began and ended."""

    plan: StepPlan
    pending: PendingStep
    begin: float
    scheduled: float


class OverlappedCore(EngineCore):
    """An EngineCore that keeps one step submitted ahead. Its executor must run steps asynchronously, in the order in
    which they are submitted."""

    def __init__(self, *parts: Any, always_ahead: bool = True, **options: Any) -> None:
        """always_ahead: where some sequences must wait for the last step's result, the next one is begun without them.
        False: then none is begun before that result, so that steps are as full as those of EngineCore."""
        super().__init__(*parts, **options)
        self._held: BegunStep | None = None
        self._always_ahead = always_ahead

    @property
    def has_unfinished(self) -> bool:
        return self._held is not None or super().has_unfinished

    def _step(self) -> list[SequenceUpdate]:
        """Submit the next step, then take the result of the one before it."""
        held = self._held
        may_begin = held is None or self._always_ahead or self._scheduler.foresees_all
        self._held = self._begin() if may_begin else None
        return [] if held is None else self._end(held)

    def close(self) -> None:
        if self._held is not None:
            self._wait_out(self._held.pending)
        super().close()

    def _end(self, begun: BegunStep) -> list[SequenceUpdate]:
        """Take the result of a step that was begun."""
        try:
            result = begun.pending.result()
        except EngineDeadError:
            raise  # no later step can be carried out either
        except Exception as fault:
            return self._fail(fault)
        return self._update(begun.plan, result, begun.begin, begun.scheduled)

    def _begin(self) -> BegunStep | None:
        """Plan and submit a step. A plan that computes nothing only updates the workers' rows: nobody awaits it."""
        begin = self._clock()
        plan = self._scheduler.schedule()
        scheduled = self._clock()
        begun = BegunStep(plan, self.executor.submit(plan), begin, scheduled)
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
