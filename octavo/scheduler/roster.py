"""The roster: which requests and sequences are here, which rows they have, and in what order they wait for one.

Ids are given at arrival, those of a request's samples side by side, although all but the first sample only exist once
the prompt is computed. So ids order by arrival, then by sample:

    request "a", n=3   ->   0 1 2        request "b", n=1   ->   3

The waiting queue says who starts next, who may pass it, and why everyone else waits:

    head                    ranked: preempted sequences before fresh ones of equal standing
     │
     a ── b ── c ── d       `a` does not fit now. b, c or d may start before it if they fit, one pass each;
     2    1    0    0       once `a` was passed max_bypasses times, nobody starts until `a` has

So a large request is not overtaken for ever, and a small one need not wait for a large one's blocks.

A policy is a rank: the lowest goes first, the highest is preempted. Ranks never change while a sequence lives, so the
best one always makes progress: any other can be preempted for it, and none for a worse one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Literal

from octavo.config import SchedulingPolicy
from octavo.errors import InvalidRequestError
from octavo.request import Request, RequestId, Sequence, SequenceId, SequenceState
from octavo.scheduler.adapter_slots import AdapterSlots

WaitReason = Literal["budget", "seats", "adapters", "blocks", "turn"]
Rank = tuple[int, ...]


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
        token_ids = [*request.prompt_token_ids, *request.begun_token_ids]
        sequence = Sequence(SequenceId(self._next_sequence_id), request, 0, token_ids, max_len=max_len)
        self.requests[name] = request
        self._num_open[name] = num_sequences = request.sampling_params.num_sequences
        self._next_sequence_id += num_sequences
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

    def unfork(self, request: Request) -> list[Sequence]:
        """A request is its sequence 0 alone again -> the others, which are gone."""
        gone, request.sequences[1:] = request.sequences[1:], []
        for sequence in gone:
            del self.sequences[sequence.sequence_id]
        return gone

    def leave(self, sequence: Sequence) -> bool:
        """A sequence ended, and with sequence 0 the samples that have not forked. True: so did its request."""
        name = sequence.request.request_id
        del self.sequences[sequence.sequence_id]
        self._num_open[name] -= sequence.num_seats
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
    reserved, but it is still open which rows they will be. vacated: rows left since the last plan. adapters: the slots
    that those who sit use; None: there are none.
    """

    def __init__(self, max_num_seqs: int, adapters: AdapterSlots | None = None) -> None:
        self.max_num_seqs = max_num_seqs
        self.adapters = adapters
        self.vacated: list[int] = []
        self._empty = list(range(max_num_seqs - 1, -1, -1))
        self._num_reserved = 0

    @property
    def num_free(self) -> int:
        """Neither taken nor reserved."""
        return len(self._empty) - self._num_reserved

    def take(self, sequence: Sequence) -> None:
        """Seat a sequence, and reserve for the forks it will have."""
        assert self.num_free >= sequence.num_seats, f"sequence {sequence.sequence_id} has no seat"
        self._sit(sequence)
        self._num_reserved += sequence.num_seats - 1

    def take_reserved(self, fork: Sequence) -> None:
        assert self._num_reserved, f"no seat was reserved for sequence {fork.sequence_id}"
        self._num_reserved -= 1
        self._sit(fork)

    def reserve_again(self, fork: Sequence) -> None:
        """A fork leaves its seat, which is kept for its request."""
        if fork.row >= 0:
            self._vacate(fork)
            self._num_reserved += 1

    def leave(self, sequence: Sequence) -> None:
        """Give back a sequence's seat and those reserved for its forks. A beam's own may be reserved still."""
        if sequence.row < 0:
            self._num_reserved -= 1
            return
        self._vacate(sequence)
        self._num_reserved -= sequence.num_seats - 1

    def _sit(self, sequence: Sequence) -> None:
        sequence.row = self._empty.pop()
        if self.adapters is not None and (adapter := sequence.request.adapter) is not None:
            self.adapters.take(adapter)

    def _vacate(self, sequence: Sequence) -> None:
        if self.adapters is not None and (adapter := sequence.request.adapter) is not None:
            self.adapters.leave(adapter)
        self._empty.append(sequence.row)
        self.vacated.append(sequence.row)
        sequence.row = -1


def first_come(sequence: Sequence) -> Rank:
    return (sequence.sequence_id,)


RANKS: dict[SchedulingPolicy, Callable[[Sequence], Rank]] = {
    "fcfs": first_come,
    "priority": lambda sequence: (sequence.request.priority, sequence.sequence_id),  # the lowest number first
}


class WaitingQueue:
    """queue: waiting sequences, the first to start first; a fresh request waits as its sequence 0. rank: by which they
    stand there."""

    def __init__(self, policy: SchedulingPolicy, max_bypasses: int) -> None:
        self.rank = _resumed_first(policy)
        self._max_bypasses = max_bypasses
        self.queue: list[Sequence] = []
        self._num_passes: dict[SequenceId, int] = {}
        self._reasons: dict[SequenceId, WaitReason] = {}
        self._unexplained: dict[SequenceId, Sequence] = {}

    def add(self, sequence: Sequence) -> None:
        insort(self.queue, sequence, key=self.rank)
        self._num_passes[sequence.sequence_id] = 0
        self._unexplained[sequence.sequence_id] = sequence

    def remove(self, sequence: Sequence) -> list[Sequence]:
        index = bisect_left(self.queue, self.rank(sequence), key=self.rank)
        assert self.queue[index] is sequence, f"sequence {sequence.sequence_id} is not waiting"
        del self.queue[index]
        del self._num_passes[sequence.sequence_id]
        self._reasons.pop(sequence.sequence_id, None)
        self._unexplained.pop(sequence.sequence_id, None)
        return self.queue[: min(index, self._max_bypasses)]

    def line(self) -> Iterator[Sequence]:
        """Sequences that may start now, best first; the caller starts (and removes) the last one it got, or leaves it.

        None is passed more than max_bypasses times, and no more than so many that stay are looked past: a long queue
        costs no more than a short one.
        """
        queue, most, staying = self.queue, self._max_bypasses, 0
        while staying < len(queue):
            passed = queue[:staying]
            if staying > most or any(self._num_passes[one.sequence_id] >= most for one in passed):
                return
            sequence = queue[staying]
            yield sequence
            if staying < len(queue) and queue[staying] is sequence:
                staying += 1
            else:
                for left_behind in passed:
                    self._num_passes[left_behind.sequence_id] += 1

    def set_reason(self, sequence: Sequence, reason: WaitReason) -> bool:
        """Note why a sequence waits; True if that is news."""
        is_news, self._reasons[sequence.sequence_id] = self._reasons.get(sequence.sequence_id) != reason, reason
        self._unexplained.pop(sequence.sequence_id, None)
        return is_news

    def take_unexplained(self) -> list[Sequence]:
        """Sequences that joined since the last call and wait without a reason."""
        joined, self._unexplained = self._unexplained, {}
        return list(joined.values())


def _resumed_first(policy: SchedulingPolicy) -> Callable[[Sequence], Rank]:
    """The policy's rank, with preempted sequences before those that have not begun, priority apart."""
    rank = RANKS[policy]

    def queue_rank(sequence: Sequence) -> Rank:
        *standing, arrival = rank(sequence)
        return (*standing, 0 if sequence.request.num_preemptions else 1, arrival)

    return queue_rank
