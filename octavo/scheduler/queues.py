"""The waiting queue: who starts next, who may go before, and why everyone else waits.

head                                        ranked: preempted sequences before fresh ones of equal standing
 │
 a ── b ── c ── d          `a` does not fit now. b, c, d that fit may start before it, one pass each; after
 passes of a: 0..max       max_bypasses passes nobody starts until `a` has: no large request starves.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Literal

from octavo.config import SchedulingPolicy
from octavo.request import Sequence, SequenceId
from octavo.scheduler.policy import RANKS, Rank

WaitReason = Literal["budget", "seats", "blocks", "turn"]


class WaitingQueue:
    """Owner of the order of waiting sequences; a fresh request waits as its sequence 0."""

    def __init__(self, policy: SchedulingPolicy, max_bypasses: int) -> None:
        self._rank = _resumed_first(policy)
        self._max_bypasses = max_bypasses
        self._queue: list[Sequence] = []
        self._num_passes: dict[SequenceId, int] = {}
        self._reasons: dict[SequenceId, WaitReason] = {}
        self._unexplained: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, sequence: Sequence) -> None:
        insort(self._queue, sequence, key=self._rank)
        self._unexplained.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        index = bisect_left(self._queue, self._rank(sequence), key=self._rank)
        assert self._queue[index] is sequence, f"sequence {sequence.sequence_id} is not waiting"
        del self._queue[index]
        self._num_passes.pop(sequence.sequence_id, None)
        self._reasons.pop(sequence.sequence_id, None)

    def line(self) -> Iterator[Sequence]:
        """Whoever may start now, best first; the caller starts (and removes) the one just seen, or leaves it.

        Ends when the first that stayed has been passed often enough, and never looks further behind it than
        that: a long queue costs no more than a short one.
        """
        queue, index = self._queue, 0
        while index < len(queue):
            if index > 0 and self._num_passes.get(queue[0].sequence_id, 0) >= self._max_bypasses:
                return
            if index > self._max_bypasses:
                return
            sequence = queue[index]
            yield sequence
            if index < len(queue) and queue[index] is sequence:
                index += 1
            elif index > 0:
                blocked = queue[0].sequence_id
                self._num_passes[blocked] = self._num_passes.get(blocked, 0) + 1

    def set_reason(self, sequence: Sequence, reason: WaitReason) -> bool:
        """Note why a sequence waits; True if that is news."""
        is_news = self._reasons.get(sequence.sequence_id) != reason
        self._reasons[sequence.sequence_id] = reason
        return is_news

    def take_unexplained(self) -> list[Sequence]:
        """Sequences that joined since the last call, still wait, and of which nobody has said why."""
        joined, self._unexplained = self._unexplained, []
        queued = {sequence.sequence_id for sequence in self._queue} if joined else set()
        return [s for s in joined if s.sequence_id in queued and s.sequence_id not in self._reasons]


def _resumed_first(policy: SchedulingPolicy) -> Callable[[Sequence], Rank]:
    """The policy's rank, with preempted sequences before those that have not begun, priority apart."""
    rank = RANKS[policy]

    def queue_rank(sequence: Sequence) -> Rank:
        *standing, arrival = rank(sequence)
        return (*standing, 0 if sequence.request.num_preemptions else 1, arrival)

    return queue_rank
