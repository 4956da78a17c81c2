"""Policies: who is better than whom. A policy is a rank; the lowest rank goes first, the highest is preempted.

Sequence ids are given in order of arrival, a request's samples side by side, so an id alone is "first come".
Ranks never change while a sequence lives, hence the best one always makes progress: everyone else can be
preempted for it, nobody for someone worse.
"""

from __future__ import annotations

from collections.abc import Callable

from octavo.config import SchedulingPolicy
from octavo.request import Sequence

Rank = tuple[int, ...]


def first_come(sequence: Sequence) -> Rank:
    return (sequence.sequence_id,)


def by_priority(sequence: Sequence) -> Rank:
    """Lowest priority number first, then first come."""
    return (sequence.request.priority, sequence.sequence_id)


RANKS: dict[SchedulingPolicy, Callable[[Sequence], Rank]] = {"fcfs": first_come, "priority": by_priority}
