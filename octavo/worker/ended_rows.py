"""EndedRows: rows that have ended with a token which the engine does not know yet.

    step 1      a b c     draws  x  end  y
    step 2      a b c     planned while step 1 ran: nothing is computed for b, and its run is empty

A host has a step's tokens before it begins the next one, so it need not compute what nobody wants any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

from octavo.messages import StepPlan, StepResult
from octavo.worker.rows import RequestStates

_COLUMNS = "rows", "num_computed_tokens", "num_scheduled_tokens", "num_logits", "num_draws"
_BY_RUN = "logprobs", "num_forced", "faults"


#: the tokens that end a row, and how many it must have drawn by then
_Stops = tuple[frozenset[int], int]


class EndedRows:
    """Remembers which tokens end a row, and the rows that the last step has ended."""

    def __init__(self, states: RequestStates) -> None:
        self._states = states
        self._stops: dict[int, _Stops] = {}  # by row
        self._any: set[int] = set()  # what ends any row, or did once
        self._ended: set[int] = set()

    def enter(self, plan: StepPlan) -> None:
        """New sequences enter their rows."""
        for new in plan.new_rows:
            self._stops[new.row] = new.stop_token_ids, new.sampling_params.min_tokens
            self._any |= new.stop_token_ids
            self._ended.discard(new.row)
        for fork in plan.fork_rows:
            self._stops[fork.row] = self._stops[fork.parent_row]
            self._ended.discard(fork.row)

    def run(self, plan: StepPlan, compute: Callable[[StepPlan], StepResult]) -> StepResult:
        """A step without the entries whose rows the last one has ended. Where a plan has more than decodes and chunks,
        which is rare, all are computed."""
        ended, self._ended = self._ended, set()
        has_more = plan.fork_rows or plan.spec_token_ids or plan.prompt_logprobs or plan.candidates
        if not ended or has_more or ended.isdisjoint(plan.rows):
            return self._noted(plan, compute(plan))
        kept = [entry for entry, row in enumerate(plan.rows) if row not in ended]
        some = _entries_of(plan, kept)
        result = self._noted(some, compute(some)) if kept else StepResult(plan.step_id, [])
        return _with_empty_runs(result, kept, len(plan.rows))

    def _noted(self, plan: StepPlan, result: StepResult) -> StepResult:
        """The result of a step whose tokens are in their rows."""
        if self._any.isdisjoint(result.sampled_token_ids):
            return result
        num_drawn = self._states.num_tokens - self._states.num_prompt_tokens
        for row, token_id in _last_tokens(plan, result):
            stops, least = self._stops[row]
            if token_id in stops and num_drawn[row] >= least:
                self._ended.add(row)
        return result


def _entries_of(plan: StepPlan, kept: list[int]) -> StepPlan:
    columns: dict[str, Any] = {name: [getattr(plan, name)[entry] for entry in kept] for name in _COLUMNS}
    return replace(plan, **columns)


def _with_empty_runs(result: StepResult, kept: list[int], num_entries: int) -> StepResult:
    """The result of a step of so many entries, from that of its kept ones."""
    offsets = result.offsets or list(range(len(result.sampled_token_ids) + 1))
    lens = [0] * num_entries
    for run, entry in enumerate(kept):
        lens[entry] = offsets[run + 1] - offsets[run]
    by_run: dict[str, Any] = {
        name: {kept[run]: value for run, value in getattr(result, name).items()} for name in _BY_RUN
    }
    return replace(result, offsets=[0, *accumulate(lens)], **by_run)


def _last_tokens(plan: StepPlan, result: StepResult) -> Iterator[tuple[int, int]]:
    """The rows that have got tokens, and the last of each."""
    rows, token_ids = [*plan.rows, *(fork.row for fork in plan.fork_rows)], result.sampled_token_ids
    ends = result.offsets[1:] or range(1, len(rows) + 1)
    starts = result.offsets[:-1] or range(len(rows))
    for row, start, end in zip(rows, starts, ends, strict=True):
        if end > start:
            yield row, token_ids[end - 1]
