"""Quarantine: finding out whose fault a failed step was.

A step is carried out for many sequences at once, and a fault in it names none of them. So each of them runs
alone until it has got past the place where the step failed:

    step of a b c d fails  ─▶  a alone, fine  ─▶  b alone, fails: b ends with the fault  ─▶  c alone ...
                               all who are cleared run together again

A fault that only shows in company clears everyone and comes back; whoever is accused for the third time ends.
"""

from __future__ import annotations

from octavo.messages import StepPlan
from octavo.request import Sequence, SequenceId

MAX_ACCUSATIONS = 2


class Quarantine:
    """Owner of who is suspected, and up to which token. Empty, as nearly always: everyone runs together."""

    def __init__(self) -> None:
        self._suspects: dict[Sequence, int] = {}
        self._num_accusations: dict[SequenceId, int] = {}

    def __bool__(self) -> bool:
        return bool(self._suspects)

    @property
    def first(self) -> Sequence | None:
        """Whoever runs alone now."""
        return next(iter(self._suspects), None)

    def accuse(self, sequence: Sequence) -> bool:
        """A sequence was in a step that failed. False: once too often."""
        num_accusations = self._num_accusations.get(sequence.sequence_id, 0) + 1
        if num_accusations > MAX_ACCUSATIONS:
            return False
        self._num_accusations[sequence.sequence_id] = num_accusations
        self._suspects[sequence] = sequence.num_computed_tokens
        return True

    def clear(self, plan: StepPlan, granted: list[Sequence]) -> None:
        """A step was carried out: whoever got past the place of the fault is innocent of it."""
        for sequence, start, count in zip(granted, plan.num_computed_tokens, plan.num_scheduled_tokens, strict=True):
            if sequence in self._suspects and start + count >= self._suspects[sequence]:
                del self._suspects[sequence]

    def drop(self, sequence: Sequence) -> None:
        """A sequence ended."""
        self._suspects.pop(sequence, None)
        self._num_accusations.pop(sequence.sequence_id, None)
