"""The scheduler's state in a snapshot of the engine, and the same scheduler from it: for replays of a log's last part.

    state_of(scheduler, requests)        all that later decisions follow from, beside the sequences themselves
    restore(scheduler, state, requests)  a scheduler that has decided nothing goes on as that one would have

Together they are the only ones who look into all parts of a scheduler at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Listlike

from octavo.observe.snapshot import DraftState, RequestState, SchedulerState
from octavo.request import Request, Sequence, SequenceId, SequenceState
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.step import PlanDraft


def why_no_replay(scheduler: Scheduler, num_named: int) -> str:
    """Why a replay could not begin at this moment; empty if it can. num_named: sequences that its snapshot has."""
    places = scheduler._places
    if num_named < len(places.roster.sequences):
        return f"{len(places.waiting.queue):,} requests waited, more than a snapshot holds"
    if any(request.sampling_params.use_beam_search for request in places.roster.requests.values()):
        return "a beam search was running"
    if places.held:
        return "requests waited for blocks of another engine"
    if places.seats.adapters is not None:
        return "its engine has adapters"
    if any(sequence.spec_token_ids for sequence in places.running):
        return "tokens were being guessed"
    return ""


def state_of(scheduler: Scheduler, requests: Iterable[Request]) -> SchedulerState:
    places, growth, quarantine = scheduler._places, scheduler._growth, scheduler._quarantine
    waiting, seats = places.waiting, places.seats
    return SchedulerState(
        requests=tuple([_request_state(scheduler, one) for one in requests]),
        drafts=tuple([_draft_state(scheduler, *item) for item in scheduler._in_flight.items()]),
        next_sequence_id=places.roster._next_sequence_id,
        empty_rows=tuple(seats._empty),
        num_reserved=seats._num_reserved,
        vacated_rows=tuple(seats.vacated),
        passes=tuple([(one.sequence_id, waiting._num_passes[one.sequence_id]) for one in waiting.queue]),
        reasons=tuple(waiting._reasons.items()),
        unexplained=tuple(waiting._unexplained),
        forking=_ids(places.forking),
        awaiting_first=tuple(sorted(_ids(places.awaiting_first))),
        mean_output_len=growth._mean_output_len,
        num_ended=growth._num_ended,
        suspects=tuple([(one.sequence_id, number) for one, number in quarantine.suspects.items()]),
        accused=tuple(quarantine.accused.items()),
    )


def _request_state(scheduler: Scheduler, request: Request) -> RequestState:
    return RequestState(
        num_made=len(request.sequences),
        num_cached_tokens=request.num_cached_tokens,
        num_preemptions=request.num_preemptions,
        has_started=request.first_scheduled_time is not None,
        num_reported=scheduler._prompt_logprobs.num_reported.get(request.request_id, -1),
    )


def _draft_state(scheduler: Scheduler, step: int, draft: PlanDraft) -> DraftState:
    return DraftState(
        step=step,
        granted=_ids(draft.granted),
        forked=_ids(draft.forked),
        num_computed=tuple(draft.num_computed_tokens),
        num_scheduled=tuple(draft.num_scheduled_tokens),
        num_draws=tuple(draft.num_draws),
        prompt_logprobs=tuple(scheduler._prompt_logprobs.entries(draft)),
        outdated=tuple(sorted(_ids(draft.outdated))),
    )


def _ids(sequences: Iterable[Sequence]) -> tuple[int, ...]:
    return tuple([one.sequence_id for one in sequences])


def restore(
    scheduler: Scheduler, step: int, state: SchedulerState, requests: Listlike[Request], max_model_len: int
) -> None:
    """requests: the state's, with their sequences, those that have ended included. Raises LookupError, ValueError or
    AssertionError for a state that no scheduler can have."""
    scheduler.num_steps = step
    known = {one.sequence_id: one for request in requests for one in request.sequences}
    _fill_places(scheduler, state, requests, known, max_model_len)
    for request, saved in zip(requests, state.requests, strict=True):
        if saved.num_reported >= 0:
            scheduler._prompt_logprobs.num_reported[request.request_id] = saved.num_reported
    growth, quarantine = scheduler._growth, scheduler._quarantine
    growth._mean_output_len, growth._num_ended = state.mean_output_len, state.num_ended
    quarantine.suspects = {known[SequenceId(one)]: number for one, number in state.suspects}
    quarantine.accused = {SequenceId(one): number for one, number in state.accused}
    for saved_draft in state.drafts:
        scheduler._in_flight[saved_draft.step] = _draft(saved_draft, known)


def _fill_places(
    scheduler: Scheduler,
    state: SchedulerState,
    requests: Listlike[Request],
    known: dict[SequenceId, Sequence],
    max_model_len: int,
) -> None:
    places, roster, waiting = scheduler._places, scheduler._places.roster, scheduler._places.waiting
    for request in requests:
        alive = [one for one in request.sequences if one.state is not SequenceState.FINISHED]
        num_ended = len(request.sequences) - len(alive)
        roster.requests[request.request_id] = request
        roster._num_open[request.request_id] = request.sampling_params.num_sequences - num_ended
        for one in alive:
            one.max_len = min(request.num_prompt_tokens + request.max_output_tokens, max_model_len)
            roster.sequences[one.sequence_id] = one
            if one.state is SequenceState.WAITING:
                waiting.add(one)
    roster._next_sequence_id = state.next_sequence_id
    seats = places.seats
    seats._empty, seats.vacated, seats._num_reserved = [*state.empty_rows], [*state.vacated_rows], state.num_reserved
    waiting._num_passes |= {SequenceId(one): number for one, number in state.passes}
    waiting._reasons = {SequenceId(one): reason for one, reason in state.reasons}  # type: ignore[misc]
    waiting._unexplained = {SequenceId(one): known[SequenceId(one)] for one in state.unexplained}
    places.join([one for one in roster.sequences.values() if one.state is SequenceState.RUNNING])
    places.forking = [known[SequenceId(one)] for one in state.forking]
    places.awaiting_first = {known[SequenceId(one)] for one in state.awaiting_first}


def _draft(saved: DraftState, known: dict[SequenceId, Sequence]) -> PlanDraft:
    return PlanDraft(
        granted=[_known(known, one) for one in saved.granted],
        granted_ids=saved.granted,
        forked=[_known(known, one) for one in saved.forked],
        num_computed_tokens=[*saved.num_computed],
        num_scheduled_tokens=[*saved.num_scheduled],
        num_draws=[*saved.num_draws],
        outdated={_known(known, one) for one in saved.outdated},
    )


def _known(known: dict[SequenceId, Sequence], sequence_id: int) -> Sequence:
    """A sequence of a plan. Its whole request may have ended since."""
    found = known.get(SequenceId(sequence_id))
    return found or ended_sequence(Request("ended", [0], SamplingParams(), 0, 0.0, 1), sequence_id, 0)


def ended_sequence(request: Request, sequence_id: int, index: int) -> Sequence:
    """Stands for one of which no more is known."""
    return Sequence(SequenceId(sequence_id), request, index, [], state=SequenceState.FINISHED)
