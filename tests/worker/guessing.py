"""Guesses, for tests, at the next tokens of every decoding sequence: some right, the others wrong."""

from __future__ import annotations

import pytest

from octavo.messages import StepPlan
from octavo.outputs import RequestOutput
from octavo.request import SequenceState
from octavo.scheduler.scheduler import Scheduler

WRONG = [11, 12]


def guess_next_tokens(monkeypatch: pytest.MonkeyPatch, outputs: list[RequestOutput]) -> list[int]:
    """Make the scheduler add guesses before each step. outputs: the answers to the same requests. Returns the number of
    guesses in each step, filled while steps are planned."""
    answers = {
        (tuple(output.prompt_token_ids or ()), one.index): list(one.token_ids)
        for output in outputs
        for one in output.outputs
    }
    schedule, computed = Scheduler.schedule, []

    def guessing(self: Scheduler) -> StepPlan:
        for sequence in self.sequences:
            num_drawn = sequence.num_output_tokens
            if sequence.state is SequenceState.RUNNING and num_drawn:
                answer = answers[tuple(sequence.request.prompt_token_ids), sequence.index]
                sequence.spec_token_ids = answer[num_drawn : num_drawn + sequence.num_tokens % 5] + WRONG
        plan = schedule(self)
        computed.append(sum(map(len, plan.spec_token_ids.values())))
        return plan

    monkeypatch.setattr(Scheduler, "schedule", guessing)
    return computed
