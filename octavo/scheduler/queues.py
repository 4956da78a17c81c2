"""The waiting queue: who starts next, who may pass it, and why everyone else waits.

    head                    ranked: preempted sequences before fresh ones of equal standing
     │
     a ── b ── c ── d       `a` does not fit now. b, c or d may start before it if they fit, one pass each;
     2    1    0    0       once `a` was passed max_bypasses times, nobody starts until `a` has

So a large request is not overtaken for ever, and a small one need not wait for a large one's blocks.

A policy is a rank: the lowest goes first, the highest is preempted. Sequence ids are given in order of arrival, a
request's samples side by side, so an id alone is "first come". Ranks never change while a sequence lives, so the best
one always makes progress: any other can be preempted for it, and none for a worse one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Literal

from octavo.config import SchedulingPolicy
from octavo.request import Sequence, SequenceId

WaitReason = Literal["budget", "seats", "blocks", "turn"]
Rank = tuple[int, ...]


def first_come(sequence: Sequence) -> Rank:
    return (sequence.sequence_id,)


def by_priority(sequence: Sequence) -> Rank:
    """Lowest priority number first, then first come."""
    return (sequence.request.priority, sequence.sequence_id)


RANKS: dict[SchedulingPolicy, Callable[[Sequence], Rank]] = {"fcfs": first_come, "priority": by_priority}


class WaitingQueue:
    """queue: waiting sequences, the first to start first; a fresh request waits as its sequence 0."""

    def __init__(self, policy: SchedulingPolicy, max_bypasses: int) -> None:
        self._rank = _resumed_first(policy)
        self._max_bypasses = max_bypasses
        self.queue: list[Sequence] = []
        self._num_passes: dict[SequenceId, int] = {}
        self._reasons: dict[SequenceId, WaitReason] = {}
        self._unexplained: dict[SequenceId, Sequence] = {}

    def add(self, sequence: Sequence) -> None:
        insort(self.queue, sequence, key=self._rank)
        self._num_passes[sequence.sequence_id] = 0
        self._unexplained[sequence.sequence_id] = sequence

    def remove(self, sequence: Sequence) -> None:
        index = bisect_left(self.queue, self._rank(sequence), key=self._rank)
        assert self.queue[index] is sequence, f"sequence {sequence.sequence_id} is not waiting"
        del self.queue[index]
        del self._num_passes[sequence.sequence_id]
        self._reasons.pop(sequence.sequence_id, None)
        self._unexplained.pop(sequence.sequence_id, None)

    def line(self) -> Iterator[Sequence]:
        """Sequences that may start now, best first; the caller starts (and removes) the last one it got, or leaves it.

        None is passed more than max_bypasses times, and no more than so many that stay are looked past: a long queue
        costs no more than a short one.
        """
        queue, staying = self.queue, 0
        while staying < len(queue):
            passed = queue[:staying]
            if staying > self._max_bypasses or any(self._is_out_of_patience(sequence) for sequence in passed):
                return
            sequence = queue[staying]
            yield sequence
            if staying < len(queue) and queue[staying] is sequence:
                staying += 1
            else:
                for left_behind in passed:
                    self._num_passes[left_behind.sequence_id] += 1

    def _is_out_of_patience(self, sequence: Sequence) -> bool:
        return self._num_passes[sequence.sequence_id] >= self._max_bypasses

    def set_reason(self, sequence: Sequence, reason: WaitReason) -> bool:
        """Note why a sequence waits; True if that is news."""
        is_news = self._reasons.get(sequence.sequence_id) != reason
        self._reasons[sequence.sequence_id] = reason
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
