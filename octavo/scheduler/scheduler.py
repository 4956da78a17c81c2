"""The scheduler: who computes how many tokens in the next step.

    add_request ──▶ waiting ──start──▶ running ───────────────────▶ finished
                       ▲                  │ ▲  │
                       └─────preempt──────┘ └──┘ fork: the other n-1 samples, once the prompt is computed

Each step has one token budget. Running sequences take from it first, best rank first, then waiting ones
while budget, seats and blocks last. A running sequence that finds no block preempts the worst running one,
possibly itself, never a better one; so the best always advances and nobody waits for ever. A request of a better
priority than running ones does not wait for them: they give way.

The loop around it is schedule, execute, update. All bookkeeping of a step is done when it is planned, and
`update` only adds what the worker drew, so that a later step may be planned while this one runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError
from octavo.messages import StepPlan, StepResult
from octavo.observe.events import EventLog
from octavo.outputs import FinishReason
from octavo.request import Request, RequestId, Sequence, SequenceId, SequenceState
from octavo.scheduler.admission import check_request
from octavo.scheduler.budget import TokenBudget
from octavo.scheduler.draft import PlanDraft
from octavo.scheduler.growth import Growth
from octavo.scheduler.journal import SchedulerJournal
from octavo.scheduler.places import Places
from octavo.scheduler.prompt_logprobs import PromptLogprobs
from octavo.scheduler.quarantine import Quarantine
from octavo.scheduler.starting import Starting
from octavo.scheduler.updates import SequenceUpdate, is_full, keep_run, num_left_to_draw, num_right


class Scheduler:
    """Owner of requests and sequences from their arrival to their end."""

    def __init__(
        self,
        config: SchedulerConfig,
        cache: KVCache,
        *,
        max_model_len: int,
        max_num_batched_tokens: int,
        events: EventLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._max_model_len = max_model_len
        self._journal = SchedulerJournal(events, clock)
        self._places = Places(config, cache, self._journal, clock)
        self._budget = TokenBudget(config, max_num_batched_tokens)
        self._growth = Growth(config.schedule_conservativeness)
        self._prompt_logprobs = PromptLogprobs()
        self._starting = Starting(self._places, cache, self._budget, self._growth, self._prompt_logprobs)
        self._quarantine = Quarantine()
        self._has_priorities = config.scheduling_policy == "priority"
        self._in_flight: dict[int, PlanDraft] = {}
        self._num_steps = 0

    # From outside, at any moment

    def add_request(self, request: Request) -> None:
        """Let a request wait for its turn. Refuses, with InvalidRequestError, one that could never finish."""
        try:
            check_request(
                request,
                cache=self._cache,
                budget=self._budget,
                max_num_seqs=self._places.seats.max_num_seqs,
                max_len=self._max_model_len,
            )
        except InvalidRequestError:
            self._journal.refused(request, "invalid")
            raise
        self._places.enter(request)
        self._prompt_logprobs.add(request)

    def abort(self, request_id: RequestId) -> bool:
        """End all of a request's sequences. False: there is no such request, or it has ended already."""
        return self.end_request(request_id, "abort")

    def end_request(self, request_id: RequestId, reason: FinishReason, stop_reason: str | None = None) -> bool:
        """End all of a request's sequences for a reason that others found. False: as in `abort`."""
        request = self._places.roster.requests.get(request_id)
        if request is None:
            return False
        for sequence in request.sequences:
            if sequence.state is not SequenceState.FINISHED:
                self._finish(sequence, reason, stop_reason)
        self._places.drop_ended()
        return True

    def finish_sequence(
        self, sequence_id: SequenceId, reason: FinishReason, stop_reason: int | str | None = None
    ) -> bool:
        """End one sequence for a reason that others found, such as a stop string. False: it has ended already."""
        sequence = self._places.roster.sequences.get(sequence_id)
        if sequence is None:
            return False
        self._finish(sequence, reason, stop_reason)
        self._places.drop_ended()
        return True

    @property
    def has_unfinished(self) -> bool:
        return bool(self._places.roster.sequences)

    @property
    def num_running(self) -> int:
        return len(self._places.running)

    @property
    def num_waiting(self) -> int:
        return len(self._places.waiting)

    @property
    def sequences(self) -> list[Sequence]:
        """Every sequence that has not ended."""
        return list(self._places.roster.sequences.values())

    # The step

    def schedule(self) -> StepPlan:
        """Plan a step: running sequences go on, waiting ones start, samples fork where a prompt is complete."""
        draft = PlanDraft()
        self._budget.refill()
        if self._quarantine:
            self._run_suspect(draft)
        else:
            self._continue_running(draft)
            self._starting.start_waiting(draft)
        self._advance(draft)
        if self._places.forking:
            for parent, child in self._places.fork():
                draft.fork(parent, child)
                child.num_pending = draft.num_draws[-1]
        return self._seal(draft)

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceUpdate]:
        """Add what a step drew, and end the sequences that are done."""
        draft = self._in_flight.pop(plan.step_id)
        prompt_rows = self._prompt_logprobs.take_fresh(draft, result) if result.prompt_logprobs else {}
        outdated, logprobs, max_len = draft.outdated, result.logprobs, self._max_model_len
        running, updates, has_left = SequenceState.RUNNING, [], False
        runs = zip(draft.drawing, draft.num_draws, result.runs, strict=True)
        for index, (sequence, num_draws, run) in enumerate(runs):
            if sequence.state is not running or (outdated and sequence in outdated):
                continue  # ended or preempted meanwhile, or went on from elsewhere
            sequence.num_pending -= num_draws
            is_as_planned = len(run) == num_draws < 2
            is_first = sequence.index == 0 and len(sequence.token_ids) == len(sequence.request.prompt_token_ids)
            end = keep_run(sequence, run, max_len)
            if is_first and run:
                self._journal.first_token(sequence)
            if not is_as_planned:
                guesses = plan.spec_token_ids.get(index, [])
                self._go_on_from_kept(sequence, len(guesses) - num_right(guesses, run), has_ended=end is not None)
                has_left = True
            if end is not None:
                self._finish(sequence, *end)
                has_left = True
            rows = prompt_rows.pop(sequence, []) if prompt_rows else []
            if run or rows or end is not None:
                of_run = logprobs[index][: len(run)] if index in logprobs else []
                updates.append(SequenceUpdate(sequence, run, of_run, rows))
        updates += [SequenceUpdate(sequence, [], [], rows) for sequence, rows in prompt_rows.items()]
        if self._quarantine:
            self._quarantine.clear(plan, draft.granted)
        if has_left:
            self._places.drop_ended()
        self._journal.sampled(draft, result, updates)
        return updates

    def fail(self, reason: str) -> list[SequenceUpdate]:
        """The worker could not carry a step out. Who was in it, or in a step planned after it, is computed anew,
        each alone, until it is known whose fault it was; who was alone already ends with it."""
        drafts, self._in_flight = self._in_flight.values(), {}
        involved = dict.fromkeys(sequence for draft in drafts for sequence in draft.drawing)
        suspects = [sequence for sequence in involved if sequence.state is SequenceState.RUNNING]
        updates = []
        for sequence in suspects:
            if len(suspects) > 1 and self._quarantine.accuse(sequence):
                self._places.preempt(sequence)
            else:
                self._finish(sequence, "error", reason)
                updates.append(SequenceUpdate(sequence, [], [], []))
        self._places.drop_ended()
        self._cache.forget()  # what is cached may build on what was never computed
        return updates

    # Parts of schedule, in order

    def _continue_running(self, draft: PlanDraft) -> None:
        index = 0
        if self._has_priorities:
            for better in self._places.waiting.line():
                priority = better.request.priority
                if not self._is_worse_running(priority):
                    break
                index = self._continue_from(index, draft, priority)
                if draft.num_preempted or not self._budget.left:
                    break
                if self._is_worse_running(priority):
                    self._starting.start_in_place_of_worse(better, draft)
        self._continue_from(index, draft)

    def _continue_from(self, index: int, draft: PlanDraft, priority: float = math.inf) -> int:
        """Grant running sequences their tokens, from this one on, as long as none has a worse priority -> the next."""
        running, budget = self._places.running, self._budget
        while index < len(running) and budget.left and running[index].request.priority <= priority:
            if not self._continue(running[index], draft):
                break
            index += 1
        return index

    def _is_worse_running(self, priority: int) -> bool:
        running = self._places.running
        return bool(running) and running[-1].request.priority > priority

    def _continue(self, sequence: Sequence, draft: PlanDraft) -> bool:
        """Grant a running sequence its next tokens, if it has any. False: it was preempted."""
        budget = self._budget
        num_computed = sequence.num_computed_tokens
        num_pending = sequence.num_pending
        num_known = len(sequence.token_ids) + num_pending - num_computed
        if num_pending and is_full(sequence, num_computed + num_known, self._max_model_len):
            return True  # the token being drawn is its last
        if num_pending and sequence.spec_token_ids:
            return True  # nobody knows yet where it goes on
        num_tokens = 1 if num_known == 1 else budget.share(num_known)
        if num_tokens == 0:
            return True  # nothing but its prompt was wanted
        has_room = num_computed + num_tokens <= self._cache.tables[sequence.sequence_id].room
        if not has_room and not self._make_room(sequence, num_tokens, draft):
            return False
        num_logits = 1 if num_tokens == num_known else 0
        if num_logits and sequence.spec_token_ids:
            num_spec = self._speculate(sequence, num_tokens, draft)
            num_tokens, num_logits = num_tokens + num_spec, 1 + num_spec
        budget.left -= num_tokens
        draft.grant(sequence, num_tokens, num_logits)
        return True

    def _speculate(self, sequence: Sequence, num_known: int, draft: PlanDraft) -> int:
        """How many of its guesses a sequence computes behind its known tokens: what its end, the budget and free blocks
        allow. Nobody is preempted for a guess."""
        num_left = num_left_to_draw(sequence, self._max_model_len)
        num_spec = min(len(sequence.spec_token_ids), num_left - 1)
        num_spec = self._budget.share(num_known + num_spec) - num_known
        if num_spec and not self._cache.grow(sequence, num_known + num_spec):
            num_spec = 0
        sequence.spec_token_ids = sequence.spec_token_ids[:num_spec]
        if num_spec:
            draft.spec_token_ids[len(draft.rows)] = sequence.spec_token_ids
        return num_spec

    def _run_suspect(self, draft: PlanDraft) -> None:
        """Nobody else computes in this step, so that a fault in it is one sequence's; others may have to make
        room for it."""
        suspect, places = self._quarantine.first, self._places
        assert suspect is not None, "somebody is suspected"
        if suspect.state is SequenceState.RUNNING:
            self._continue(suspect, draft)
        else:
            while not self._starting.try_start(suspect, draft, is_alone=True):
                assert places.running, f"sequence {suspect.sequence_id} was admitted but does not fit an empty engine"
                places.preempt_worst()
        for sequence in places.waiting.take_unexplained():
            places.explain(sequence, "turn", "a step failed, and those who were in it run alone first")

    def _make_room(self, sequence: Sequence, num_tokens: int, draft: PlanDraft) -> bool:
        """Blocks for a running sequence, at the cost of the worst ones. False: that was the sequence itself."""
        while not self._cache.grow(sequence, num_tokens):
            victim = self._places.preempt_worst()
            draft.num_preempted += 1
            draft.growth = None
            if victim is sequence:
                return False
        return True

    def _advance(self, draft: PlanDraft) -> None:
        """Count the step as computed; plans are carried out in order, so later plans may build on it."""
        columns = draft.granted, draft.num_scheduled_tokens, draft.num_draws
        for sequence, num_tokens, num_draws in zip(*columns, strict=True):
            sequence.num_computed_tokens += num_tokens
            sequence.num_pending += num_draws

    def _seal(self, draft: PlanDraft) -> StepPlan:
        """The draft as a plan; whoever joined takes their place among the running."""
        places = self._places
        if draft.joining:
            places.join(draft.joining)
        self._num_steps += 1
        plan = draft.seal(
            step_id=self._num_steps,
            freed_rows=places.seats.take_vacated(),
            block_changes=self._cache.take_changes(),
            prompt_logprobs=self._prompt_logprobs.entries(draft) if self._prompt_logprobs else [],
        )
        self._in_flight[plan.step_id] = draft
        self._journal.scheduled(plan, draft, len(places.waiting), self._cache.num_available_blocks)
        return plan

    # Parts of update

    def _go_on_from_kept(self, sequence: Sequence, num_wrong: int, has_ended: bool) -> None:
        """A sequence got more or fewer tokens than planned: it goes on from what it has kept, and what is in flight for
        it brings it nothing. num_wrong: guesses that were computed in vain. One that would go on from where a window
        has passed starts anew."""
        sequence.spec_token_ids = []
        if sequence.num_pending:
            sequence.num_pending = 0
            for later in self._in_flight.values():
                later.outdated.add(sequence)
        num_computed = min(sequence.num_computed_tokens - num_wrong, sequence.num_tokens - 1)
        if not self._cache.rewind(sequence, num_computed) and not has_ended:
            self._places.preempt(sequence)

    def _finish(self, sequence: Sequence, reason: FinishReason, stop_reason: int | str | None) -> None:
        has_request_ended = self._places.end(sequence, reason, stop_reason)
        if reason in ("stop", "length"):
            self._growth.ended(sequence)
        self._quarantine.drop(sequence)
        if has_request_ended:
            self._prompt_logprobs.drop(sequence.request)
