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
from typing import NamedTuple

from octavo.cache.kv_cache import KVCache
from octavo.cache.prefix_tree import PrefixMatch
from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError
from octavo.messages import LogprobRow, StepPlan, StepResult
from octavo.observe.events import EventLog
from octavo.outputs import FinishReason
from octavo.request import Request, RequestId, Sequence, SequenceId, SequenceState
from octavo.scheduler.admission import check_request
from octavo.scheduler.budget import TokenBudget
from octavo.scheduler.draft import PlanDraft
from octavo.scheduler.giving_way import Lack, who_gives_way
from octavo.scheduler.growth import Growth
from octavo.scheduler.journal import SchedulerJournal
from octavo.scheduler.policy import RANKS
from octavo.scheduler.prompt_logprobs import PromptLogprobs
from octavo.scheduler.quarantine import Quarantine
from octavo.scheduler.queues import WaitingQueue, WaitReason
from octavo.scheduler.roster import Roster
from octavo.scheduler.seats import Seats, num_seats
from octavo.scheduler.stop import NO_TOKEN, NO_TOKEN_ENDING, Ending, find_ending, is_full


class SequenceUpdate(NamedTuple):
    """What one step brought one sequence; whether it ended is written on the sequence.

    logprobs: of the new token. prompt_logprobs: of the next prompt tokens, each position once.
    """

    sequence: Sequence
    token_ids: list[int]
    logprobs: LogprobRow | None
    prompt_logprobs: list[LogprobRow]


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
        self._clock = clock
        self._journal = SchedulerJournal(events, clock)
        self._roster = Roster()
        assert config.max_num_seqs is not None, "whoever knows the device has chosen a number"
        self._seats = Seats(config.max_num_seqs)
        self._budget = TokenBudget(config, max_num_batched_tokens)
        self._growth = Growth(config.schedule_conservativeness)
        self._prompt_logprobs = PromptLogprobs()
        self._quarantine = Quarantine()
        self._rank = RANKS[config.scheduling_policy]
        self._has_priorities = config.scheduling_policy == "priority"
        self._waiting = WaitingQueue(config.scheduling_policy, config.max_bypasses)
        self._running: list[Sequence] = []  # best rank first
        self._forking: list[Sequence] = []  # those of the running whose samples are still to come
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
                max_num_seqs=self._seats.max_num_seqs,
                max_len=self._max_model_len,
            )
        except InvalidRequestError:
            self._journal.refused(request, "invalid")
            raise
        sequence = self._roster.enter(request)
        self._prompt_logprobs.add(request)
        self._waiting.add(sequence)
        self._journal.arrived(request)

    def abort(self, request_id: RequestId) -> bool:
        """End all of a request's sequences. False: there is no such request, or it has ended already."""
        return self.end_request(request_id, "abort")

    def end_request(self, request_id: RequestId, reason: FinishReason, stop_reason: str | None = None) -> bool:
        """End all of a request's sequences for a reason that others found. False: as in `abort`."""
        request = self._roster.requests.get(request_id)
        if request is None:
            return False
        for sequence in request.sequences:
            if sequence.state is not SequenceState.FINISHED:
                self._finish(sequence, reason, stop_reason)
        self._drop_finished()
        return True

    def finish_sequence(
        self, sequence_id: SequenceId, reason: FinishReason, stop_reason: int | str | None = None
    ) -> bool:
        """End one sequence for a reason that others found, such as a stop string. False: it has ended already."""
        sequence = self._roster.sequences.get(sequence_id)
        if sequence is None:
            return False
        self._finish(sequence, reason, stop_reason)
        self._drop_finished()
        return True

    @property
    def has_unfinished(self) -> bool:
        return bool(self._roster.sequences)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def sequences(self) -> list[Sequence]:
        """Every sequence that has not ended."""
        return list(self._roster.sequences.values())

    # The step

    def schedule(self) -> StepPlan:
        """Plan a step: running sequences go on, waiting ones start, samples fork where a prompt is complete."""
        draft = PlanDraft()
        self._budget.refill()
        if self._quarantine:
            self._run_suspect(draft)
        else:
            self._continue_running(draft)
            self._start_waiting(draft)
        self._advance(draft)
        self._fork_samples(draft)
        return self._seal(draft)

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceUpdate]:
        """Add what a step drew, and end the sequences that are done."""
        draft = self._in_flight.pop(plan.step_id)
        prompt_rows = self._fresh_prompt_logprobs(plan, draft, result) if result.prompt_logprobs else {}
        logprobs, updates, has_ended = result.logprobs, [], False
        for index, (sequence, token_id) in enumerate(zip(draft.sampled, result.sampled_token_ids, strict=True)):
            if sequence.state is not SequenceState.RUNNING:
                continue  # ended or preempted meanwhile
            sequence.num_pending -= 1
            end = self._append(sequence, token_id)
            if end is not None:
                self._finish(sequence, *end)
                has_ended = True
            rows = prompt_rows.pop(sequence, []) if prompt_rows else []
            if token_id == NO_TOKEN:
                updates.append(SequenceUpdate(sequence, [], None, rows))
            else:
                updates.append(SequenceUpdate(sequence, [token_id], logprobs.get(index), rows))
        updates += [SequenceUpdate(sequence, [], None, rows) for sequence, rows in prompt_rows.items()]
        if self._quarantine:
            self._quarantine.clear(plan, draft.granted)
        if has_ended:
            self._drop_finished()
        self._journal.sampled(draft, result, updates)
        return updates

    def fail(self, reason: str) -> list[SequenceUpdate]:
        """The worker could not carry a step out. Who was in it, or in a step planned after it, is computed anew,
        each alone, until it is known whose fault it was; who was alone already ends with it."""
        drafts, self._in_flight = self._in_flight.values(), {}
        involved = dict.fromkeys(sequence for draft in drafts for sequence in draft.granted + draft.sampled)
        suspects = [sequence for sequence in involved if sequence.state is SequenceState.RUNNING]
        updates = []
        for sequence in suspects:
            if len(suspects) > 1 and self._quarantine.accuse(sequence):
                self._preempt(sequence)
            else:
                self._finish(sequence, "error", reason)
                updates.append(SequenceUpdate(sequence, [], None, []))
        self._drop_finished()
        self._cache.forget()  # what is cached may build on what was never computed
        return updates

    # Parts of schedule, in order

    def _continue_running(self, draft: PlanDraft) -> None:
        index = 0
        if self._has_priorities:
            for better in self._waiting.line():
                priority = better.request.priority
                if not self._is_worse_running(priority):
                    break
                index = self._continue_from(index, draft, priority)
                if draft.num_preempted or not self._budget.left:
                    break
                if self._is_worse_running(priority):
                    self._start_in_place_of_worse(better, draft)
        self._continue_from(index, draft)

    def _continue_from(self, index: int, draft: PlanDraft, priority: float = math.inf) -> int:
        """Grant running sequences their tokens, from this one on, as long as none has a worse priority -> the next."""
        running, budget = self._running, self._budget
        while index < len(running) and budget.left and running[index].request.priority <= priority:
            if not self._continue(running[index], draft):
                break
            index += 1
        return index

    def _is_worse_running(self, priority: int) -> bool:
        return bool(self._running) and self._running[-1].request.priority > priority

    def _continue(self, sequence: Sequence, draft: PlanDraft) -> bool:
        """Grant a running sequence its next tokens, if it has any. False: it was preempted."""
        budget = self._budget
        num_computed = sequence.num_computed_tokens
        num_pending = sequence.num_pending
        num_wanted = len(sequence.token_ids) + num_pending - num_computed
        if num_pending and is_full(sequence, num_computed + num_wanted, self._max_model_len):
            return True  # the token being drawn is its last
        num_tokens = 1 if num_wanted == 1 else budget.share(num_wanted)
        has_room = num_computed + num_tokens <= self._cache.tables[sequence.sequence_id].room
        if not has_room and not self._make_room(sequence, num_tokens, draft):
            return False
        budget.left -= num_tokens
        draft.grant(sequence, num_tokens, is_last=num_tokens == num_wanted)
        return True

    def _run_suspect(self, draft: PlanDraft) -> None:
        """Nobody else computes in this step, so that a fault in it is one sequence's; others may have to make
        room for it."""
        suspect = self._quarantine.first
        assert suspect is not None, "somebody is suspected"
        if suspect.state is SequenceState.RUNNING:
            self._continue(suspect, draft)
        else:
            while not self._try_start(suspect, draft):
                assert self._running, f"sequence {suspect.sequence_id} was admitted but does not fit an empty engine"
                self._preempt(self._running.pop())
        for sequence in self._waiting.take_unexplained():
            self._explain(sequence, "turn", "a step failed, and those who were in it run alone first")

    def _make_room(self, sequence: Sequence, num_tokens: int, draft: PlanDraft) -> bool:
        """Blocks for a running sequence, at the cost of the worst ones. False: that was the sequence itself."""
        while not self._cache.grow(sequence, num_tokens):
            victim = self._running.pop()
            self._preempt(victim)
            draft.num_preempted += 1
            draft.growth = None
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue without blocks; most of their content will be found again in the prefix tree."""
        self._journal.preempted(sequence)
        self._cache.free(sequence, "preempted")
        self._stand_up(sequence)
        sequence.num_computed_tokens = sequence.num_pending = 0  # a token being drawn will be drawn again, the same
        sequence.state = SequenceState.WAITING
        sequence.request.num_preemptions += 1
        self._waiting.add(sequence)

    def _start_waiting(self, draft: PlanDraft) -> None:
        """Whoever fits. Not in a step that preempted: whoever started now would be the next to be preempted."""
        if draft.num_preempted == draft.num_gave_way == 0:
            for sequence in self._waiting.line():
                has_started = self._try_start(sequence, draft)
                if not has_started and (self._budget.left == 0 or self._seats.num_free == 0):
                    break
        for sequence in self._waiting.take_unexplained():
            if draft.num_preempted:
                self._explain(sequence, "blocks", "a running sequence found none, so nobody starts in this step")
            elif draft.num_gave_way:
                self._explain(sequence, "turn", "a better request took the place of one that ran")
            else:
                self._explain(sequence, "turn", "an earlier request starts first")

    def _try_start(self, sequence: Sequence, draft: PlanDraft) -> bool:
        """Start a waiting sequence if seats, budget and blocks allow; else say what does not."""
        cache, budget, seats = self._cache, self._budget, self._seats
        if num_seats(sequence) > seats.num_free:
            self._explain(sequence, "seats", f"needs {num_seats(sequence)}, {seats.num_free} are free")
            return False
        match = cache.find_prefix(sequence, self._num_readable(sequence))
        num_wanted = sequence.num_tokens - match.num_tokens
        num_tokens = budget.first_share(num_wanted, is_resuming=sequence.request.num_preemptions > 0)
        if num_tokens == 0:
            self._explain(sequence, "budget", f"wants {num_wanted} tokens, the step has {budget.left} left")
            return False
        num_blocks = cache.num_blocks_to_start(sequence, match, budget.longest_share)
        if num_blocks > cache.num_available_blocks:
            self._explain(sequence, "blocks", f"needs {num_blocks}, {cache.num_available_blocks} are available")
            return False
        self._growth.guess_len(sequence)
        num_kept = self._num_blocks_kept(sequence, draft)
        if num_blocks + num_kept > cache.num_available_blocks:
            lacking = f"needs {num_blocks} and {num_kept} for its growth and that of those who run"
            self._explain(sequence, "blocks", f"{lacking}, {cache.num_available_blocks} are available")
            return False
        self._start(sequence, match, num_tokens, draft)
        return True

    def _start_in_place_of_worse(self, sequence: Sequence, draft: PlanDraft) -> None:
        """Start a waiting sequence, at the cost of running ones of a worse priority if need be; or leave it waiting."""
        cache, budget = self._cache, self._budget
        worse = [one for one in self._running if one.request.priority > sequence.request.priority]
        match = cache.find_prefix(sequence, self._num_readable(sequence))
        num_wanted = sequence.num_tokens - match.num_tokens
        num_tokens = budget.first_share(num_wanted, is_resuming=sequence.request.num_preemptions > 0)
        if num_tokens == 0:
            return
        self._growth.guess_len(sequence)
        others = self._running[: len(self._running) - len(worse)]
        growth = self._growth.of_all(others, [one for one in self._forking if one in others]) + draft.joining_growth
        lack = Lack(
            seats=num_seats(sequence) - self._seats.num_free,
            blocks=cache.num_blocks_to_start(sequence, match, budget.longest_share) - cache.num_available_blocks,
            growth=cache.num_blocks_to_grow(growth + self._growth.of(sequence)) if others or draft.joining else 0,
        )
        leaving = who_gives_way(lack, worse, cache, match)
        if leaving is None:
            return
        for one in leaving:
            assert self._running.pop() is one, "the worst of the running go first"
            self._preempt(one)
            draft.num_gave_way += 1
            draft.growth = None
        self._start(sequence, match, num_tokens, draft)

    def _num_blocks_kept(self, sequence: Sequence, draft: PlanDraft) -> int:
        """Blocks that stay free when a sequence starts beside others; alone, or as a suspect, it may always."""
        if draft.growth is None:
            draft.growth = self._growth.of_all(self._running, self._forking)
        if self._quarantine or not (self._running or draft.joining):
            return 0
        return self._cache.num_blocks_to_grow(draft.growth + draft.joining_growth + self._growth.of(sequence))

    def _start(self, sequence: Sequence, match: PrefixMatch, num_tokens: int, draft: PlanDraft) -> None:
        request = sequence.request
        self._waiting.remove(sequence)
        self._seats.take(sequence)
        sequence.state = SequenceState.RUNNING
        self._journal.started(sequence)
        self._cache.start(sequence, match)
        has_room = self._cache.grow(sequence, num_tokens)
        assert has_room, f"sequence {sequence.sequence_id} was promised blocks that are not there"
        if request.first_scheduled_time is None:
            request.first_scheduled_time = self._clock()
            request.num_cached_tokens = match.num_tokens
        if num_seats(sequence) > 1:
            self._forking.append(sequence)
        self._budget.left -= num_tokens
        draft.joining_growth += self._growth.of(sequence) + sequence.num_tokens - match.num_tokens - num_tokens
        draft.enter(sequence)
        draft.grant(sequence, num_tokens, is_last=match.num_tokens + num_tokens == sequence.num_tokens)

    def _num_readable(self, sequence: Sequence) -> int:
        """How many leading tokens may come from the prefix tree. One is always left, to draw from; and prompt
        log-probabilities not reported yet need their positions computed."""
        if sequence.request.sampling_params.skip_reading_prefix_cache:
            return 0
        num_reported = self._prompt_logprobs.num_reported(sequence)
        return sequence.num_tokens - 1 if num_reported is None else num_reported

    def _advance(self, draft: PlanDraft) -> None:
        """Count the step as computed; plans are carried out in order, so later plans may build on it."""
        for sequence, num_tokens in zip(draft.granted, draft.num_scheduled_tokens, strict=True):
            sequence.num_computed_tokens += num_tokens

    def _fork_samples(self, draft: PlanDraft) -> None:
        """Where this step computes a prompt's last token, the other samples join and draw from it too."""
        complete = [parent for parent in self._forking if parent.num_computed_tokens == parent.num_tokens]
        for parent in complete:
            self._forking.remove(parent)
            for _ in range(num_seats(parent) - 1):
                child = self._roster.fork(parent)
                self._seats.take_reserved(child)
                self._cache.fork(parent, child)
                draft.fork(parent, child)

    def _seal(self, draft: PlanDraft) -> StepPlan:
        """The draft as a plan; whoever joined takes their place among the running."""
        if draft.joining:
            self._running.extend(draft.joining)
            self._running.sort(key=self._rank)
        self._num_steps += 1
        plan = draft.seal(
            step_id=self._num_steps,
            freed_rows=self._seats.take_vacated(),
            block_changes=self._cache.take_changes(),
            prompt_logprobs=self._prompt_logprobs.entries(draft) if self._prompt_logprobs else [],
        )
        self._in_flight[plan.step_id] = draft
        for sequence in draft.sampled:
            sequence.num_pending += 1
        self._journal.scheduled(plan, draft, len(self._waiting), self._cache.num_available_blocks)
        return plan

    # Parts of update

    def _append(self, sequence: Sequence, token_id: int) -> Ending | None:
        """A sequence's new token, and whether it is the last. A token that is none spoils nothing but its owner."""
        if token_id == NO_TOKEN:
            return NO_TOKEN_ENDING
        sequence.token_ids.append(token_id)
        if sequence.index == 0 and sequence.num_output_tokens == 1:
            self._journal.first_token(sequence)
        return find_ending(sequence, self._max_model_len)

    def _fresh_prompt_logprobs(
        self, plan: StepPlan, draft: PlanDraft, result: StepResult
    ) -> dict[Sequence, list[LogprobRow]]:
        return {
            sequence: self._prompt_logprobs.take_fresh(sequence, plan.num_computed_tokens[entry], rows)
            for entry, rows in result.prompt_logprobs.items()
            if (sequence := draft.granted[entry]).state is SequenceState.RUNNING
        }

    # Ends and explanations

    def _finish(self, sequence: Sequence, reason: FinishReason, stop_reason: int | str | None) -> None:
        self._cache.free(sequence, _WHY_FREED[reason])
        if sequence.state is SequenceState.RUNNING:
            self._stand_up(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason
        sequence.stop_reason = stop_reason
        self._journal.finished(sequence, reason)
        if reason in ("stop", "length"):
            self._growth.ended(sequence)
        self._quarantine.drop(sequence)
        if self._roster.leave(sequence):
            self._prompt_logprobs.drop(sequence.request)

    def _stand_up(self, sequence: Sequence) -> None:
        """Leave the seat, and those reserved for samples to come."""
        self._seats.leave(sequence)
        if sequence in self._forking:
            self._forking.remove(sequence)

    def _drop_finished(self) -> None:
        self._running = [sequence for sequence in self._running if sequence.state is SequenceState.RUNNING]

    def _explain(self, sequence: Sequence, reason: WaitReason, detail: str) -> None:
        if self._waiting.set_reason(sequence, reason):
            self._journal.waits(sequence, f"{reason}: {detail}")


_WHY_FREED: dict[FinishReason, str] = {"stop": "finished", "length": "finished", "abort": "aborted", "error": "error"}
