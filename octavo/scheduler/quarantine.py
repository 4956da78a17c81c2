"""Quarantine: finds the sequence at which a step failed.

A step is carried out for many sequences at once, and its fault names none of them. So each of them runs alone until it
has got past the place where the step failed:

    step of a b c d fails  ─▶  a alone, fine  ─▶  b alone, fails: b ends with the fault  ─▶  c alone ...
                               all who are cleared run together again

A fault that only shows in a batch clears everyone and comes back; a sequence that is accused a third time ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from octavo.request import Sequence, SequenceId, SequenceState
from octavo.scheduler.continuing import Continuing
from octavo.scheduler.places import Places
from octavo.scheduler.starting import Starting
from octavo.scheduler.step import PlanDraft

MAX_ACCUSATIONS = 2


class Quarantine:
    """suspects: the sequences that run alone, the first one now, and the number of tokens that each must get past.
    accused: how often each that lives was in a step that failed. Both are nearly always empty."""

    def __init__(self, places: Places, continuing: Continuing, starting: Starting) -> None:
        self._places = places
        self._continuing = continuing
        self._starting = starting
        self.suspects: dict[Sequence, int] = {}
        self.accused: dict[SequenceId, int] = {}

    def run_suspect(self, draft: PlanDraft) -> None:
        """Only the first suspect computes in this step, so that a fault in it is that sequence's. Others may have to
        make room for it."""
        suspect, places = next(iter(self.suspects)), self._places
        if suspect.state is not SequenceState.RUNNING:
            is_search = suspect.request.sampling_params.use_beam_search
            while suspect.sequence_id not in places.held:
                may_start = not (is_search and places.running)  # preempted for others it would begin again, for ever
                if may_start and self._starting.try_start(suspect, draft, is_alone=True):
                    break
                if suspect.sequence_id in places.held:
                    break
                if not places.running:
                    assert self._starting.has_lent, f"sequence {suspect.sequence_id} does not fit an empty engine"
                    break
                places.preempt_worst("alone", suspect)
        elif suspect.request.request_id in places.searching:
            self._continuing.continue_beams(suspect.request, draft)
        else:
            self._continuing.continue_one(suspect, draft)
        for sequence in places.waiting.take_unexplained():
            places.explain(sequence, "turn", "a step failed, and those who were in it run alone first")

    def accuse(self, involved: Iterable[Sequence]) -> Iterator[Sequence]:
        """Preempt the sequences of a step that failed -> those at fault: one that was alone, or accused too often."""
        found = dict.fromkeys(map(_who_stands_for, involved))
        running = [sequence for sequence in found if sequence.state is SequenceState.RUNNING]
        for sequence in running:
            num_accusations = self.accused.get(sequence.sequence_id, 0) + 1
            if len(running) == 1 or num_accusations > MAX_ACCUSATIONS:
                if sequence.request.request_id in self._places.searching:
                    self._places.unfork(sequence.request)
                yield sequence
                continue
            self.accused[sequence.sequence_id] = num_accusations
            self.suspects[sequence] = sequence.num_computed_tokens
            self._places.preempt(sequence, "fault")

    def clear(self, draft: PlanDraft) -> None:
        """A step was carried out: it clears those that got past the place of the fault."""
        columns = draft.granted, draft.num_computed_tokens, draft.num_scheduled_tokens
        for sequence, start, count in zip(*columns, strict=True):
            if sequence in self.suspects and start + count >= self.suspects[sequence]:
                del self.suspects[sequence]

    def drop(self, sequence: Sequence) -> None:
        """A sequence ended."""
        self.suspects.pop(sequence, None)
        self.accused.pop(sequence.sequence_id, None)


def _who_stands_for(sequence: Sequence) -> Sequence:
    """Beams fail together: the first for all of its request."""
    request = sequence.request
    return request.sequences[0] if request.sampling_params.use_beam_search else sequence
