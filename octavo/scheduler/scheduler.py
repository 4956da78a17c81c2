"""The scheduler: who computes how many tokens in the next step.

    add_request ──▶ waiting ──start──▶ running ───────────────────▶ finished
                       ▲                  │ ▲  │
                       └─────preempt──────┘ └──┘ fork: the other n-1 samples, once the prompt is computed

Each step has one token budget. Running sequences take from it first, the best first, then waiting ones while budget,
seats and blocks last. A sequence is only preempted for a better one; so the best always advances, and none waits for
ever.

All bookkeeping of a step is done when it is planned, and `update` only adds the tokens that the worker drew, so that a
later step may be planned while this one runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError
from octavo.messages import StepPlan, StepResult
from octavo.observe.event_log import EventLog
from octavo.observe.events import EndAsked, FirstToken, Refused, StepFailed
from octavo.outputs import FinishReason
from octavo.request import Request, RequestId, Sequence, SequenceId, SequenceState
from octavo.scheduler.adapter_shelf import AdapterShelf
from octavo.scheduler.adapter_slots import AdapterSlots
from octavo.scheduler.awaited_adapters import AwaitedAdapters
from octavo.scheduler.beams import Beams
from octavo.scheduler.continuing import Continuing, TokenBudget
from octavo.scheduler.giving_way import GivingWay
from octavo.scheduler.micro_batches import MicroBatches
from octavo.scheduler.places import Places
from octavo.scheduler.prompt_logprobs import PromptLogprobs
from octavo.scheduler.quarantine import Quarantine
from octavo.scheduler.starting import Growth, Starting
from octavo.scheduler.step import (
    NO_TOKEN,
    NO_TOKEN_ENDING,
    PlanDraft,
    ScheduledEvents,
    SequenceUpdate,
    keep_run,
    num_right,
    runs_of,
)


class Scheduler:
    """Owner of requests and sequences from their arrival to their end. num_steps: those that were planned."""

    def __init__(
        self,
        config: SchedulerConfig,
        cache: KVCache,
        *,
        max_model_len: int,
        max_num_batched_tokens: int,
        events: EventLog,
        clock: Callable[[], float] = time.monotonic,
        num_stages: int = 1,
        num_adapter_slots: int = 0,
        num_kept_adapters: int = 0,
    ) -> None:
        """num_stages: of a pipeline. So many steps are planned before the first one's result comes. num_kept_adapters:
        that workers keep in their host's memory; 0: they read none."""
        self._cache = cache
        self._max_model_len = max_model_len
        self._has_priorities = config.scheduling_policy == "priority"
        self._events = events
        self._clock = clock
        shelf = AdapterShelf(num_kept_adapters) if num_kept_adapters else None
        adapters = self._adapters = AdapterSlots(num_adapter_slots, shelf) if num_adapter_slots else None
        self._places = Places(config, cache, events, clock, adapters)
        #: None: no request waits until an adapter is read
        self.awaited: AwaitedAdapters | None = None
        if adapters is not None and shelf is not None:
            self.awaited = AwaitedAdapters(adapters, shelf, self._places, self._finish, events, clock)
        self._budget = TokenBudget(config, max_num_batched_tokens)
        self._growth = Growth(config.schedule_conservativeness)
        self._prompt_logprobs = PromptLogprobs()
        self._starting = Starting(self._places, cache, self._budget, self._growth, self._prompt_logprobs)
        self._beams = Beams(self._places, cache, events, clock)
        self._continuing = Continuing(self._places, cache, self._budget)
        if num_stages > 1:
            self._continuing = MicroBatches(self._places, cache, self._budget, num_stages)
        self._giving_way = GivingWay(self._places, cache, self._budget, self._starting, self._continuing)
        self._quarantine = Quarantine(self._places, self._continuing, self._starting)
        self._in_flight: dict[int, PlanDraft] = {}
        self._scheduled_events = ScheduledEvents()
        self.num_steps = 0

    # From outside, at any moment

    def add_request(self, request: Request, *, is_held: bool = False) -> None:
        """Let a request wait for its turn. Refuses, with InvalidRequestError, one that could never finish. is_held: it
        takes no turn until `release`."""
        max_len = min(request.num_prompt_tokens + request.max_output_tokens, self._max_model_len)
        try:
            self._starting.check(request, max_len, self._max_model_len)
        except InvalidRequestError:
            if self._events.is_on:
                self._events.write(Refused(self._clock(), request.request_id, "invalid"))
            raise
        awaits_adapter = self.awaited is not None and self.awaited.hold(request)
        self._places.enter(request, max_len, is_held=is_held or awaits_adapter)
        if awaits_adapter:
            self._starting.await_adapter(request.sequences[0])
        if request.sampling_params.prompt_logprobs is not None:
            self._prompt_logprobs.add(request)

    def release(self, request: Request) -> None:
        self._places.release(request.sequences[0])

    def abort(self, request_id: RequestId) -> bool:
        """End all of a request's sequences. False: there is no such request, or it has ended already."""
        return self.end_request(request_id, "abort")

    def end_request(self, request_id: RequestId, reason: FinishReason, stop_reason: str | None = None) -> bool:
        """End all of a request's sequences for a reason that others found. False: as in `abort`."""
        request = self._places.roster.requests.get(request_id)
        if request is None:
            return False
        if self._events.is_on:
            self._events.write(EndAsked(self._clock(), request_id, -1, reason))
        for sequence in request.sequences:
            if sequence.state is not SequenceState.FINISHED:
                self._finish(sequence, reason, stop_reason)
        self._places.drop_ended()
        return True

    def finish_sequence(self, sequence_id: SequenceId, reason: FinishReason, stop_reason: str | None = None) -> bool:
        """End one sequence for a reason that others found, such as a stop string. False: it has ended already."""
        sequence = self._places.roster.sequences.get(sequence_id)
        if sequence is None:
            return False
        if self._events.is_on:
            self._events.write(EndAsked(self._clock(), sequence.request.request_id, sequence_id, reason))
        self._finish(sequence, reason, stop_reason)
        self._places.drop_ended()
        return True

    @property
    def has_unfinished(self) -> bool:
        """Whether there is a sequence that is not held."""
        return len(self._places.roster.sequences) > len(self._places.held)

    @property
    def awaits_all(self) -> bool:
        """Whether no sequence can go on before a step in flight has brought its token."""
        return not self._places.waiting.queue and all(sequence.num_pending for sequence in self._places.running)

    @property
    def foresees_all(self) -> bool:
        """Whether every running sequence goes on one token later, whatever the steps in flight draw. Where beams,
        guesses, and sequences whose grammar may force tokens go on is decided by what is drawn."""
        return not any(
            sequence.spec_token_ids
            or sequence.request.is_constrained
            or sequence.request.sampling_params.use_beam_search
            for sequence in self._places.running
        )

    @property
    def num_running(self) -> int:
        return len(self._places.running)

    @property
    def num_waiting(self) -> int:
        return len(self._places.waiting.queue) + len(self._places.held)

    @property
    def sequences(self) -> list[Sequence]:
        """Every sequence that has not ended."""
        return list(self._places.roster.sequences.values())

    # The step

    def schedule(self) -> StepPlan:
        """Plan a step: running sequences go on, waiting ones start, samples fork where a prompt is complete."""
        draft = PlanDraft()
        waiting = self._places.waiting
        self._budget.left = self._budget.size
        if self._quarantine.suspects:
            self._quarantine.run_suspect(draft)
        else:
            num_continued = self._giving_way.start_better(draft) if self._has_priorities and waiting.queue else 0
            self._continuing.continue_from(num_continued, draft)
            if waiting.queue:
                self._starting.start_waiting(draft)
        if self._places.forking:
            self._beams.ask(draft)
        draft.advance()
        if self._places.forking:
            for parent, child in self._places.fork():
                draft.fork(parent, child)
        return self._seal(draft)

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceUpdate]:
        """Add what a step drew, and end the sequences that are done."""
        draft = self._in_flight.pop(plan.step_id)
        has_more = (
            result.logprobs or result.prompt_logprobs or result.candidates or plan.spec_token_ids or result.faults
        )
        if not (result.offsets or has_more or self._places.watched):
            return self._update_plain(draft, result)
        prompt_rows = self._prompt_logprobs.take_fresh(draft, result) if result.prompt_logprobs else {}
        outdated, logprobs, awaiting = draft.outdated, result.logprobs, self._places.awaiting_first
        running, updates, has_left = SequenceState.RUNNING, [], False
        runs = zip(draft.drawing, draft.num_draws, runs_of(result), strict=True)
        for index, (sequence, num_draws, run) in enumerate(runs):
            if sequence.state is not running or (outdated and sequence in outdated):
                continue  # it ended or was preempted meanwhile, or went on from elsewhere
            sequence.num_pending -= num_draws
            is_as_planned = len(run) == num_draws < 2
            end = keep_run(sequence, run) if run else draft.end_of_prompt(index, sequence)
            if end == NO_TOKEN_ENDING and index in result.faults:
                end = "error", result.faults[index]
            if awaiting and sequence in awaiting and (run or (end is not None and not num_draws)):
                self._log_first(sequence)  # or all that was wanted
            if not is_as_planned:
                guesses = plan.spec_token_ids.get(index, [])
                self._go_on_from_kept(sequence, len(guesses) - num_right(guesses, run), has_ended=end is not None)
                has_left = True
            if end is not None:
                self._finish(sequence, *end)
                has_left = True
            rows = prompt_rows.pop(sequence, ()) if prompt_rows else ()
            if run or rows or end is not None:
                of_run = logprobs[index][: len(run)] if index in logprobs else ()
                updates.append(SequenceUpdate(sequence, run, of_run, rows, result.pooled.get(index)))
        if result.candidates:
            updates += self._beams.choose(draft, result, lambda sequence, ending: self._finish(sequence, *ending))
            has_left = True
        updates += [SequenceUpdate(sequence, [], (), rows) for sequence, rows in prompt_rows.items()]
        return self._updated(draft, result, updates, has_left=has_left)

    def _update_plain(self, draft: PlanDraft, result: StepResult) -> list[SequenceUpdate]:
        """The same for a step that drew one token for each sequence, which is most of them, and nothing else, while no
        request has repetition_detection."""
        outdated, awaiting, running = draft.outdated, self._places.awaiting_first, SequenceState.RUNNING
        updates, has_left = list[SequenceUpdate](), False
        for sequence, token_id in zip(draft.drawing, result.sampled_token_ids, strict=True):
            if sequence.state is not running or (outdated and sequence in outdated):
                continue
            sequence.num_pending -= 1
            token_ids, request, run = sequence.token_ids, sequence.request, [token_id]
            if awaiting and sequence in awaiting and token_id != NO_TOKEN:
                self._log_first(sequence)
            if token_id in request.stop_token_ids or token_id == NO_TOKEN or len(token_ids) + 1 >= sequence.max_len:
                end = keep_run(sequence, run)
                if end is not None:
                    self._finish(sequence, *end)
                    has_left = True
            else:
                token_ids.append(token_id)
            updates.append(SequenceUpdate(sequence, run))
        return self._updated(draft, result, updates, has_left=has_left)

    def _updated(
        self, draft: PlanDraft, result: StepResult, updates: list[SequenceUpdate], *, has_left: bool
    ) -> list[SequenceUpdate]:
        """What follows every step that was carried out."""
        if self._quarantine.suspects:
            self._quarantine.clear(draft)
        if has_left:
            self._places.drop_ended()
        if self._events.is_on:
            options = {"has_left": has_left, "keeps_token_ids": self._events.keeps_token_ids}
            sampled = draft.sampled(self._clock(), result, updates, **options)
            if sampled.sequence_ids:
                self._events.write(sampled)
        return updates

    def fail(self, reason: str) -> list[SequenceUpdate]:
        """The worker could not carry a step out. Each sequence in it, or in a step planned after it, is computed again,
        alone, until the one at fault is found; one that was alone already ends with the fault."""
        if self._events.is_on:
            self._events.write(StepFailed(self._clock(), reason))
        drafts, self._in_flight = self._in_flight.values(), {}
        updates = []
        for sequence in self._quarantine.accuse(sequence for draft in drafts for sequence in draft.drawing):
            self._finish(sequence, "error", reason)
            updates.append(SequenceUpdate(sequence, []))
        self._places.drop_ended()
        if self._adapters is not None:
            self._adapters.forget()
        self._cache.forget()  # what is cached may build on what was never computed
        return updates

    def _seal(self, draft: PlanDraft) -> StepPlan:
        """The draft as a plan; the sequences that joined take their place among the running."""
        seats = self._places.seats
        if draft.joining:
            self._places.join(draft.joining)
            for earlier in self._in_flight.values():  # what a sequence drew before it was preempted
                earlier.outdated.update(draft.joining)
        if self._places.searching:
            self._beams.announce(draft)
        self.num_steps += 1
        plan = draft.seal(
            step_id=self.num_steps,
            freed_rows=seats.vacated,
            block_changes=self._cache.take_changes(),
            prompt_logprobs=self._prompt_logprobs.entries(draft) if self._prompt_logprobs.num_reported else [],
            adapters=[] if self._adapters is None else self._adapters.take_loads(),
        )
        seats.vacated = []
        self._in_flight[plan.step_id] = draft
        if self._events.is_on:
            counts = self.num_waiting, self._cache.num_available_blocks
            self._events.write(self._scheduled_events.event(self._clock(), draft, plan.step_id, *counts))
        return plan

    def _log_first(self, sequence: Sequence) -> None:
        """A sequence that awaited its request's first token got it."""
        self._places.awaiting_first.discard(sequence)
        if self._events.is_on:
            self._events.write(FirstToken(self._clock(), sequence.request.request_id))

    def _go_on_from_kept(self, sequence: Sequence, num_wrong: int, has_ended: bool) -> None:
        """A sequence got more or fewer tokens than planned: it goes on from those it has kept, and the steps in flight
        bring it nothing. num_wrong: guesses that were computed in vain. If a window has passed the place where it would
        go on, it starts again."""
        sequence.spec_token_ids = []
        if sequence.num_pending:
            sequence.num_pending = 0
            for later in self._in_flight.values():
                later.outdated.add(sequence)
        num_computed = min(sequence.num_computed_tokens - num_wrong, sequence.num_tokens - 1)
        if not self._cache.rewind(sequence, num_computed) and not has_ended:
            self._places.preempt(sequence, "rewound")

    def _finish(self, sequence: Sequence, reason: FinishReason, stop_reason: int | str | None) -> None:
        has_request_ended = self._places.end(sequence, reason, stop_reason)
        if reason in ("stop", "length"):
            self._growth.ended(sequence)
        if self._quarantine.accused:
            self._quarantine.drop(sequence)
        if has_request_ended and self._beams.searches:
            self._beams.searches.pop(sequence.request.request_id, None)
        if has_request_ended and self._prompt_logprobs.num_reported:
            self._prompt_logprobs.drop(sequence.request)
