"""What the scheduler writes into the event log: one line at each place where a sequence moves."""

from __future__ import annotations

from collections.abc import Callable, Collection

from octavo.messages import StepPlan, StepResult
from octavo.observe.events import (
    Arrived,
    EventLog,
    Finished,
    FirstToken,
    Preempted,
    Refused,
    Sampled,
    Scheduled,
    Started,
    Waits,
)
from octavo.outputs import FinishReason
from octavo.request import Request, Sequence
from octavo.scheduler.step import NO_TOKEN, NO_TOKEN_ENDING, PlanDraft, SequenceUpdate


class SchedulerJournal:
    """Callers ask `events.is_on` first."""

    def __init__(self, events: EventLog, clock: Callable[[], float]) -> None:
        self._events = events
        self._clock = clock

    def arrived(self, request: Request) -> None:
        params = request.sampling_params
        self._events.write(
            Arrived(
                time=self._clock(),
                request_id=request.request_id,
                num_prompt_tokens=request.num_prompt_tokens,
                num_sequences=params.n,
                arrival_time=request.arrival_time,
                max_tokens=request.max_output_tokens,
                temperature=params.temperature,
                top_p=params.top_p,
            )
        )

    def refused(self, request: Request, why: str) -> None:
        self._events.write(Refused(self._clock(), request.request_id, why))

    def waits(self, sequence: Sequence, why: str) -> None:
        self._events.write(Waits(self._clock(), sequence.request.request_id, why))

    def started(self, sequence: Sequence) -> None:
        request_id = sequence.request.request_id
        self._events.write(Started(self._clock(), sequence.sequence_id, request_id, sequence.row))

    def scheduled(self, plan: StepPlan, draft: PlanDraft, num_waiting: int, num_free_blocks: int) -> None:
        draft.granted_ids = tuple([sequence.sequence_id for sequence in draft.granted])
        columns = draft.granted_ids, tuple(plan.num_computed_tokens), tuple(plan.num_scheduled_tokens)
        self._events.write(Scheduled(self._clock(), plan.step_id, *columns, num_waiting, num_free_blocks))

    def sampled(self, draft: PlanDraft, result: StepResult, updates: Collection[SequenceUpdate]) -> None:
        """Mostly everyone in the step got one token that counts; then the ids are those of its Scheduled."""
        everyone_drew = len(updates) == len(result.sampled_token_ids) == len(draft.granted) and not result.offsets
        if everyone_drew and draft.granted_ids and NO_TOKEN not in result.sampled_token_ids:
            ids, num_tokens = draft.granted_ids, len(draft.granted_ids)
        else:
            ids = tuple([sequence.sequence_id for sequence, token_ids, *_ in updates if token_ids])
            num_tokens = sum([len(token_ids) for _, token_ids, *_ in updates])
        if ids:
            self._events.write(Sampled(self._clock(), result.step_id, ids, num_tokens))

    def preempted(self, sequence: Sequence) -> None:
        ids = sequence.sequence_id, sequence.request.request_id
        self._events.write(Preempted(self._clock(), *ids, sequence.num_computed_tokens))

    def first_token(self, sequence: Sequence) -> None:
        self._events.write(FirstToken(self._clock(), sequence.request.request_id))

    def finished(self, sequence: Sequence, reason: FinishReason) -> None:
        ids = sequence.sequence_id, sequence.request.request_id
        is_corrupted = (reason, sequence.stop_reason) == NO_TOKEN_ENDING
        self._events.write(Finished(self._clock(), *ids, reason, sequence.num_output_tokens, is_corrupted))
