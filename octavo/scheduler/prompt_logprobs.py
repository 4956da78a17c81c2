"""Prompt log-probabilities: every prompt position reported once, whatever is cut, preempted or recomputed.

prompt      a b c d e f          position i yields the log-probability of token i+1
reported    ─ b c                so far; the next chunk may recompute from any position up to here,
                                 and rows already reported are dropped
"""

from __future__ import annotations

from octavo.messages import LogprobRow, StepResult
from octavo.request import Request, RequestId, Sequence, SequenceState
from octavo.scheduler.draft import PlanDraft


class PromptLogprobs:
    """Owner of how far each request that asked for them has been served. Empty: nobody waits for any."""

    def __init__(self) -> None:
        self._num_reported: dict[RequestId, int] = {}

    def __bool__(self) -> bool:
        return bool(self._num_reported)

    def add(self, request: Request) -> None:
        if request.sampling_params.prompt_logprobs is not None and request.num_prompt_tokens > 1:
            self._num_reported[request.request_id] = 0

    def drop(self, request: Request) -> None:
        self._num_reported.pop(request.request_id, None)

    def num_reported(self, sequence: Sequence) -> int | None:
        """Positions reported so far; None if this sequence owes none."""
        return self._num_reported.get(sequence.request.request_id) if sequence.index == 0 else None

    def entries(self, draft: PlanDraft) -> list[int]:
        """Entries of a step whose prompt positions want log-probabilities."""
        return [
            entry
            for entry, sequence in enumerate(draft.granted)
            if self.num_reported(sequence) is not None
            and draft.num_computed_tokens[entry] < sequence.request.num_prompt_tokens - 1
        ]

    def take_fresh(self, draft: PlanDraft, result: StepResult) -> dict[Sequence, list[LogprobRow]]:
        """What a step brought those who still run."""
        return {
            sequence: self._fresh(sequence, draft.num_computed_tokens[entry], rows)
            for entry, rows in result.prompt_logprobs.items()
            if (sequence := draft.granted[entry]).state is SequenceState.RUNNING
        }

    def _fresh(self, sequence: Sequence, start: int, rows: list[LogprobRow]) -> list[LogprobRow]:
        """Of the rows of positions `start` onwards, those not reported before."""
        request = sequence.request
        num_reported, num_owed = self._num_reported[request.request_id], request.num_prompt_tokens - 1
        assert start <= num_reported, f"prompt positions {num_reported} to {start - 1} of a request were skipped"
        fresh = rows[num_reported - start : num_owed - start]
        if num_reported + len(fresh) == num_owed:
            self.drop(request)
        else:
            self._num_reported[request.request_id] = num_reported + len(fresh)
        return fresh
