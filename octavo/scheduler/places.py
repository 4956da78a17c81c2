"""Where every sequence is, and its moves: what changes together when one starts, forks, is preempted or ends.

    waiting ──start──▶ running ──end──▶ gone          queue, seats, blocks and roster always agree
       ▲                 │ ▲ │
       └────preempt──────┘ └─┘ fork

The scheduler decides who moves; each move is written into the event log here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from octavo.cache.block_pool import PrefixMatch
from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.observe.event_log import EventLog
from octavo.observe.events import Arrived, Finished, Preempted, Started, Waits
from octavo.outputs import FinishReason
from octavo.request import Request, RequestId, Sequence, SequenceId, SequenceState
from octavo.scheduler.adapter_slots import AdapterSlots
from octavo.scheduler.roster import RANKS, Roster, Seats, WaitingQueue, WaitReason
from octavo.scheduler.step import NO_TOKEN_ENDING

PreemptReason = Literal["blocks", "priority", "fault", "alone", "rewound"]

_WHY_FREED: dict[FinishReason, str] = {
    **dict.fromkeys(("stop", "length", "repetition"), "finished"),
    "abort": "aborted",
    "error": "error",
}


class Places:
    """Owner of the queue, the seats and the roster. running: best rank first. forking: those of the running whose
    samples are still to come. searching: requests whose beams have forked. watched: those with repetition_detection.
    awaiting_first: those that have started and will draw their request's first token. held: sequences that wait, but
    not for their turn: something that they will start with is on its way."""

    def __init__(
        self,
        config: SchedulerConfig,
        cache: KVCache,
        events: EventLog,
        clock: Callable[[], float],
        adapters: AdapterSlots | None = None,
    ) -> None:
        assert config.max_num_seqs is not None, "max_num_seqs is chosen when the device is known"
        self._cache = cache
        self._events = events
        self._clock = clock
        self._rank = RANKS[config.scheduling_policy]
        self.roster = Roster()
        self.seats = Seats(config.max_num_seqs, adapters)
        self.waiting = WaitingQueue(config.scheduling_policy, config.max_bypasses)
        self.running: list[Sequence] = []
        self.forking: list[Sequence] = []
        self.searching: set[RequestId] = set()
        self.watched: set[RequestId] = set()
        self.held: dict[SequenceId, Sequence] = {}
        self.awaiting_first: set[Sequence] = set()

    def enter(self, request: Request, max_len: int, *, is_held: bool = False) -> None:
        """A request waits for its turn, or is held."""
        sequence = self.roster.enter(request, max_len)
        if request.sampling_params.repetition_detection is not None:
            self.watched.add(request.request_id)
        if is_held:
            self.held[sequence.sequence_id] = sequence
        else:
            self.waiting.add(sequence)
        if self._events.is_on:
            token_ids = tuple(request.prompt_token_ids) if self._events.keeps_token_ids else ()
            self._events.write(arrival_of(request, self._clock(), token_ids))

    def hold(self, sequence: Sequence, reason: WaitReason, detail: str) -> None:
        """A sequence that waits for its turn waits apart, for something that it will start with."""
        self.waiting.remove(sequence)
        self.held[sequence.sequence_id] = sequence
        self.explain_held(sequence, reason, detail)

    def explain_held(self, sequence: Sequence, reason: WaitReason, detail: str) -> None:
        if self._events.is_on:
            self._events.write(Waits(self._clock(), sequence.request.request_id, f"{reason}: {detail}"))

    def release(self, sequence: Sequence) -> None:
        """One that is held waits for its turn, among those that arrived when it did."""
        self.waiting.add(self.held.pop(sequence.sequence_id))

    def start(self, sequence: Sequence, match: PrefixMatch, num_tokens: int) -> None:
        """From the queue to a seat, with blocks for the tokens that were found and the next `num_tokens`. It is among
        the running once the plan is sealed (`join`)."""
        request = sequence.request
        passed = self.waiting.remove(sequence)  # those who stood before it
        self.seats.take(sequence)
        sequence.state = SequenceState.RUNNING
        if self._events.is_on:
            ids = sequence.sequence_id, request.request_id
            passed_ids = tuple([one.sequence_id for one in passed])
            self._events.write(Started(self._clock(), *ids, sequence.row, passed_ids))
        self._cache.start(sequence, match)
        has_room = self._cache.grow(sequence, num_tokens)
        assert has_room, f"sequence {sequence.sequence_id} was promised blocks that are not there"
        is_search = request.sampling_params.use_beam_search
        if sequence.index == 0 and len(sequence.token_ids) == request.first_len and not is_search:
            self.awaiting_first.add(sequence)
        if request.first_scheduled_time is None:
            request.first_scheduled_time = self._clock()
            request.num_cached_tokens = match.num_tokens
        if sequence.num_seats > 1 or is_search:
            self.forking.append(sequence)

    def fork(self) -> Iterator[tuple[Sequence, Sequence]]:
        """Where a prompt's last token is computed, the other samples take their seats -> parent and child of each."""
        for parent in [one for one in self.forking if one.num_computed_tokens == one.num_tokens]:
            if not parent.request.sampling_params.use_beam_search:  # beams fork once their first tokens are chosen
                yield from [(parent, child) for child in self.fork_one(parent)]

    def fork_one(self, parent: Sequence) -> list[Sequence]:
        """The other samples, or beams, of a request get its prompt's blocks. Samples take their seats as well, beams
        once they are planned."""
        self.forking.remove(parent)
        is_search = parent.request.sampling_params.use_beam_search
        if is_search:
            self.searching.add(parent.request.request_id)
        children = [self.roster.fork(parent) for _ in range(parent.num_seats - 1)]
        for child in children:
            if not is_search:
                self.seats.take_reserved(child)
            self._cache.fork(parent, child)
        return children

    def seat(self, beams: Iterable[Sequence]) -> None:
        """Beams that have forked take their seats."""
        for beam in beams:
            if beam.row < 0:
                self.seats.take_reserved(beam)

    def join(self, started: list[Sequence]) -> None:
        """Sequences that started or forked take their place among the running."""
        self.running.extend(started)
        self.running.sort(key=self._rank)

    def preempt_worst(self, why: PreemptReason, by: Sequence) -> Sequence:
        """The last of the running waits again."""
        worst = self.running.pop()
        self.preempt(worst, why, by)
        return worst

    def preempt(self, sequence: Sequence, why: PreemptReason, by: Sequence | None = None) -> None:
        """Back to the queue without blocks; most of their content will be found again in the prefix tree. Beams advance
        together or not at all, so all of a request's go, and their search begins again from the prompt."""
        if sequence.request.sampling_params.use_beam_search:
            sequence = self.unfork(sequence.request)
        if self._events.is_on:
            ids = sequence.sequence_id, sequence.request.request_id
            for_whom = -1 if by is None else by.sequence_id
            self._events.write(Preempted(self._clock(), *ids, sequence.num_computed_tokens, why, for_whom))
        self._cache.free(sequence, "preempted")
        self._stand_up(sequence)
        sequence.num_computed_tokens = sequence.num_pending = 0  # a token being drawn will be drawn again, the same
        sequence.spec_token_ids = []
        sequence.state = SequenceState.WAITING
        sequence.request.num_preemptions += 1
        self.waiting.add(sequence)

    def unfork(self, request: Request) -> Sequence:
        """Drop all beams of a request but the first, and what that has generated -> the first."""
        first = request.sequences[0]
        self.searching.discard(request.request_id)
        for beam in request.sequences:
            if beam in self.running:
                self.running.remove(beam)
        self._cache.free(first, "preempted")
        self._cache.drop_hashes(first)
        first.token_ids = list(request.prompt_token_ids)
        for beam in self.roster.unfork(request):
            self._cache.unfork(beam)
            self.seats.reserve_again(beam)
            beam.state = SequenceState.FINISHED
        return first

    def drop(self, beam: Sequence) -> None:
        """One of several beams leaves without an answer."""
        self._cache.unfork(beam)
        self.seats.leave(beam)
        beam.state = SequenceState.FINISHED
        self.roster.leave(beam)

    def end(self, sequence: Sequence, reason: FinishReason, stop_reason: int | str | None) -> bool:
        """A sequence leaves for good, except from the list of the running. True: its request has ended with it."""
        self._cache.free(sequence, _WHY_FREED[reason])
        if sequence.state is SequenceState.RUNNING:
            self._stand_up(sequence)
        elif self.held.pop(sequence.sequence_id, None) is None:
            self.waiting.remove(sequence)
        self.awaiting_first.discard(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason
        sequence.stop_reason = stop_reason
        if self._events.is_on:
            ids = sequence.sequence_id, sequence.request.request_id
            is_corrupted = (reason, stop_reason) == NO_TOKEN_ENDING
            fault = str(stop_reason) if reason == "error" else ""
            num_tokens = sequence.num_output_tokens
            self._events.write(Finished(self._clock(), *ids, reason, num_tokens, is_corrupted, fault))
        has_request_ended = self.roster.leave(sequence)
        if has_request_ended:
            self.searching.discard(sequence.request.request_id)
            self.watched.discard(sequence.request.request_id)
        return has_request_ended

    def drop_ended(self) -> None:
        """Only sequences that run are among the running."""
        self.running = [sequence for sequence in self.running if sequence.state is SequenceState.RUNNING]

    def explain(self, sequence: Sequence, reason: WaitReason, detail: str) -> None:
        """Log why a sequence waits, if that is news."""
        if self.waiting.set_reason(sequence, reason) and self._events.is_on:
            self._events.write(Waits(self._clock(), sequence.request.request_id, f"{reason}: {detail}"))

    def _stand_up(self, sequence: Sequence) -> None:
        """Leave the seat, and those reserved for samples to come."""
        self.seats.leave(sequence)
        if sequence in self.forking:
            self.forking.remove(sequence)


def arrival_of(request: Request, time: float, token_ids: tuple[int, ...] = ()) -> Arrived:
    """The event of a request that the roster knows."""
    params, adapter = request.sampling_params, request.adapter
    return Arrived(
        time=time,
        request_id=request.request_id,
        num_prompt_tokens=request.num_prompt_tokens,
        num_sequences=params.n,
        arrival_time=request.arrival_time,
        max_tokens=request.max_output_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        sequence_id=request.sequences[0].sequence_id,
        priority=request.priority,
        num_beams=params.num_sequences if params.use_beam_search else 0,
        can_stop=bool(request.stop_token_ids or params.stop),
        min_tokens=params.min_tokens,
        is_fresh=bool(params.skip_reading_prefix_cache),
        has_prompt_logprobs=params.prompt_logprobs is not None,
        num_begun_tokens=len(request.begun_token_ids),
        prompt_token_ids=token_ids,
        adapter="" if adapter is None else adapter.name,
        adapter_key=0 if adapter is None else adapter.key,
    )
