"""Where every sequence is, and its moves: what changes together when one starts, forks, is preempted or ends.

    waiting ──start──▶ running ──end──▶ gone          queue, seats, blocks and roster always agree
       ▲                 │ ▲ │
       └────preempt──────┘ └─┘ fork

The scheduler decides who moves. Ids are given at arrival, those of a request's samples side by side, although all but
the first sample only exist once the prompt is computed. So ids order by arrival, then by sample:

    request "a", n=3   ->   0 1 2        request "b", n=1   ->   3
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from octavo.cache.block_pool import PrefixMatch
from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError
from octavo.observe.events import EventLog
from octavo.outputs import FinishReason
from octavo.request import Request, RequestId, Sequence, SequenceId, SequenceState
from octavo.scheduler.journal import SchedulerJournal
from octavo.scheduler.queues import RANKS, WaitingQueue, WaitReason

_WHY_FREED: dict[FinishReason, str] = {"stop": "finished", "length": "finished", "abort": "aborted", "error": "error"}


class Roster:
    """Owner of ids, and of the requests and sequences that have arrived and not ended."""

    def __init__(self) -> None:
        self.sequences: dict[SequenceId, Sequence] = {}
        self.requests: dict[RequestId, Request] = {}
        self._num_open: dict[RequestId, int] = {}
        self._next_sequence_id = 0

    def enter(self, request: Request, max_len: int) -> Sequence:
        """A request arrives; its sequence 0 stands for all of it."""
        name = request.request_id
        if name in self.requests:
            raise InvalidRequestError(f"request id {name!r} is in use: choose another or wait for its end")
        assert not request.sequences, f"request {name!r} brings sequences; they are made here"
        sequence_id = SequenceId(self._next_sequence_id)
        sequence = Sequence(sequence_id, request, 0, list(request.prompt_token_ids), max_len=max_len)
        self._next_sequence_id += request.sampling_params.n
        self.requests[name] = request
        self._num_open[name] = request.sampling_params.n
        self._add(sequence)
        return sequence

    def fork(self, parent: Sequence) -> Sequence:
        """The next sample of a request; it runs, and has computed what its parent has."""
        index = len(parent.request.sequences)
        child = Sequence(
            sequence_id=SequenceId(parent.sequence_id + index),
            request=parent.request,
            index=index,
            token_ids=list(parent.token_ids),
            num_computed_tokens=parent.num_computed_tokens,
            max_len=parent.max_len,
            expected_len=parent.expected_len,
            state=SequenceState.RUNNING,
        )
        self._add(child)
        return child

    def leave(self, sequence: Sequence) -> bool:
        """A sequence ended, and with sequence 0 the samples that have not forked. True: so did its request."""
        name = sequence.request.request_id
        del self.sequences[sequence.sequence_id]
        self._num_open[name] -= num_seats(sequence)
        if self._num_open[name]:
            return False
        del self._num_open[name], self.requests[name]
        return True

    def _add(self, sequence: Sequence) -> None:
        sequence.request.sequences.append(sequence)
        self.sequences[sequence.sequence_id] = sequence


class Seats:
    """The worker's permanent rows, 0 .. max_num_seqs-1.

    A request with n=4 needs four seats from its start, although three stay empty until its prompt is computed: they are
    reserved, but it is still open which rows they will be. vacated: rows left since the last plan.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self.max_num_seqs = max_num_seqs
        self.vacated: list[int] = []
        self._empty = list(range(max_num_seqs - 1, -1, -1))
        self._num_reserved = 0

    @property
    def num_free(self) -> int:
        """Neither taken nor reserved."""
        return len(self._empty) - self._num_reserved

    def take(self, sequence: Sequence) -> None:
        """Seat a sequence, and reserve for the forks it will have."""
        assert self.num_free >= num_seats(sequence), f"sequence {sequence.sequence_id} has no seat"
        sequence.row = self._empty.pop()
        self._num_reserved += num_seats(sequence) - 1

    def take_reserved(self, fork: Sequence) -> None:
        assert self._num_reserved, f"no seat was reserved for sequence {fork.sequence_id}"
        self._num_reserved -= 1
        fork.row = self._empty.pop()

    def leave(self, sequence: Sequence) -> None:
        """Give back a sequence's seat and those reserved for its forks."""
        self._empty.append(sequence.row)
        self.vacated.append(sequence.row)
        self._num_reserved -= num_seats(sequence) - 1
        sequence.row = -1


def num_seats(sequence: Sequence) -> int:
    """A sequence's own seat, and those of the forks its request still lacks."""
    request = sequence.request
    return 1 + request.sampling_params.n - len(request.sequences)


class Places:
    """Owner of the queue, the seats and the roster. running: best rank first. forking: those of the running whose
    samples are still to come."""

    def __init__(self, config: SchedulerConfig, cache: KVCache, events: EventLog, clock: Callable[[], float]) -> None:
        assert config.max_num_seqs is not None, "whoever knows the device has chosen a number"
        self._cache = cache
        self._events = events
        self._clock = clock
        self._rank = RANKS[config.scheduling_policy]
        self.journal = SchedulerJournal(events, clock)
        self.roster = Roster()
        self.seats = Seats(config.max_num_seqs)
        self.waiting = WaitingQueue(config.scheduling_policy, config.max_bypasses)
        self.running: list[Sequence] = []
        self.forking: list[Sequence] = []

    def enter(self, request: Request, max_len: int) -> None:
        """A request waits for its turn."""
        self.waiting.add(self.roster.enter(request, max_len))
        if self._events.is_on:
            self.journal.arrived(request)

    def start(self, sequence: Sequence, match: PrefixMatch, num_tokens: int) -> None:
        """From the queue to a seat, with blocks for the tokens that were found and the next `num_tokens`. It is among
        the running once the plan is sealed (`join`)."""
        request = sequence.request
        self.waiting.remove(sequence)
        self.seats.take(sequence)
        sequence.state = SequenceState.RUNNING
        if self._events.is_on:
            self.journal.started(sequence)
        self._cache.start(sequence, match)
        has_room = self._cache.grow(sequence, num_tokens)
        assert has_room, f"sequence {sequence.sequence_id} was promised blocks that are not there"
        if request.first_scheduled_time is None:
            request.first_scheduled_time = self._clock()
            request.num_cached_tokens = match.num_tokens
        if num_seats(sequence) > 1:
            self.forking.append(sequence)

    def fork(self) -> Iterator[tuple[Sequence, Sequence]]:
        """Where a prompt's last token is computed, the other samples take their seats -> parent and child of each."""
        for parent in [one for one in self.forking if one.num_computed_tokens == one.num_tokens]:
            self.forking.remove(parent)
            for _ in range(num_seats(parent) - 1):
                child = self.roster.fork(parent)
                self.seats.take_reserved(child)
                self._cache.fork(parent, child)
                yield parent, child

    def join(self, started: list[Sequence]) -> None:
        """Sequences that started or forked take their place among the running."""
        self.running.extend(started)
        self.running.sort(key=self._rank)

    def preempt_worst(self) -> Sequence:
        """The last of the running waits again."""
        worst = self.running.pop()
        self.preempt(worst)
        return worst

    def preempt(self, sequence: Sequence) -> None:
        """Back to the queue without blocks; most of their content will be found again in the prefix tree."""
        if self._events.is_on:
            self.journal.preempted(sequence)
        self._cache.free(sequence, "preempted")
        self._stand_up(sequence)
        sequence.num_computed_tokens = sequence.num_pending = 0  # a token being drawn will be drawn again, the same
        sequence.spec_token_ids = []
        sequence.state = SequenceState.WAITING
        sequence.request.num_preemptions += 1
        self.waiting.add(sequence)

    def end(self, sequence: Sequence, reason: FinishReason, stop_reason: int | str | None) -> bool:
        """A sequence leaves for good, except from the list of the running. True: its request has ended with it."""
        self._cache.free(sequence, _WHY_FREED[reason])
        if sequence.state is SequenceState.RUNNING:
            self._stand_up(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason
        sequence.stop_reason = stop_reason
        if self._events.is_on:
            self.journal.finished(sequence, reason)
        return self.roster.leave(sequence)

    def drop_ended(self) -> None:
        """Only sequences that run are among the running."""
        self.running = [sequence for sequence in self.running if sequence.state is SequenceState.RUNNING]

    def explain(self, sequence: Sequence, reason: WaitReason, detail: str) -> None:
        """Log why a sequence waits, if that is news."""
        if self.waiting.set_reason(sequence, reason) and self._events.is_on:
            self.journal.waits(sequence, f"{reason}: {detail}")

    def _stand_up(self, sequence: Sequence) -> None:
        """Leave the seat, and those reserved for samples to come."""
        self.seats.leave(sequence)
        if sequence in self.forking:
            self.forking.remove(sequence)
