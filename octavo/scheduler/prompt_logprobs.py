"""Prompt log-probabilities: each position is reported once, whatever is cut, preempted or recomputed.

prompt      a b c d e f          position i yields the log-probability of token i+1
reported    ─ b c                so far; the next chunk may recompute from any position up to here,
                                 and rows already reported are dropped
"""

from __future__ import annotations

from octavo.messages import LogprobRow, StepResult
from octavo.request import Request, RequestId, Sequence, SequenceState
from octavo.scheduler.step import PlanDraft


class PromptLogprobs:
    """num_reported: how many positions each request that is owed prompt log-probabilities has got; mostly empty."""

    def __init__(self) -> None:
        self.num_reported: dict[RequestId, int] = {}

    def add(self, request: Request) -> None:
        if request.num_prompt_tokens > 1:
            self.num_reported[request.request_id] = 0

    def drop(self, request: Request) -> None:
        self.num_reported.pop(request.request_id, None)

    def num_reported_of(self, sequence: Sequence) -> int | None:
        """None: this sequence is owed none."""
        return self.num_reported.get(sequence.request.request_id) if sequence.index == 0 else None

    def entries(self, draft: PlanDraft) -> list[int]:
        """Entries of a step whose prompt positions want log-probabilities."""
        return [
            entry
            for entry, sequence in enumerate(draft.granted)
            if self.num_reported_of(sequence) is not None
            and draft.num_computed_tokens[entry] < sequence.request.num_prompt_tokens - 1
        ]

    def take_fresh(self, draft: PlanDraft, result: StepResult) -> dict[Sequence, list[LogprobRow]]:
        """The new rows of the sequences that still run."""
        return {
            sequence: self._fresh(sequence.request, draft.num_computed_tokens[entry], rows)
            for entry, rows in result.prompt_logprobs.items()
            if (sequence := draft.granted[entry]).state is SequenceState.RUNNING
        }

    def _fresh(self, request: Request, start: int, rows: list[LogprobRow]) -> list[LogprobRow]:
        """The rows, which begin at position `start`, that were not reported before."""
        num_reported, num_owed = self.num_reported[request.request_id], request.num_prompt_tokens - 1
        assert start <= num_reported, f"prompt positions {num_reported} to {start - 1} of a request were skipped"
        fresh = rows[num_reported - start : num_owed - start]
        if num_reported + len(fresh) == num_owed:
            self.drop(request)
        else:
            self.num_reported[request.request_id] = num_reported + len(fresh)
        return fresh
