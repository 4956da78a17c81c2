"""Forced tokens: what must follow a drawn token, by its row's grammar, is appended without a forward pass for each.

    grammar    {"name": "...", "age": ...}        after  {"  only  name": "  can come
    drawn      {"
    run        {" name ": "                       the next step computes all of it as one chunk, and draws behind it

If a grammar lets nothing follow, its run ends with END_OF_GRAMMAR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from octavo.kernels.arrays import IntArray
from octavo.messages import END_OF_GRAMMAR, StepResult
from octavo.worker.rows import LiveRows


class ConstrainedRuns(NamedTuple):
    """Runs of a result whose rows have grammars: their numbers, rows, how many of these tokens are prompt, and how many
    they had with the run."""

    runs: Sequence[int]
    rows: list[int]
    starts: list[int]
    ends: list[int]


def with_forced(
    result: StepResult,
    live: LiveRows,
    constrained: ConstrainedRuns,
    memory: Callable[[int], IntArray] | None = None,
    jumped: Callable[[list[int]], None] | None = None,
) -> StepResult:
    """The result with what its tokens entail. The rows get these tokens, too.

    memory: for the rows' masks, if they are to be made meanwhile. jumped: is told the rows that got tokens.
    """
    states, token_ids = live.states, live.states.token_ids
    _, numbers, starts, ends = constrained
    most = token_ids.shape[1] - 1
    outputs = [token_ids[row, start:end] for row, start, end in zip(numbers, starts, ends, strict=True)]
    found = live.grammars.following(numbers, outputs, [most - end for end in ends], memory)
    if not any(found):
        return result
    following: dict[int, list[int]] = {}
    num_forced: dict[int, int] = {}
    rows: list[int] = []
    for run, row, num_tokens, tokens in zip(constrained.runs, numbers, ends, found, strict=True):
        if tokens:
            following[run] = tokens
            if forced := tokens[:-1] if tokens[-1] == END_OF_GRAMMAR else tokens:
                states.token_ids[row, num_tokens : num_tokens + len(forced)] = forced
                states.num_tokens[row] = num_tokens + len(forced)
                num_forced[run] = len(forced)
                rows.append(row)
    if jumped is not None and rows:
        jumped(rows)
    return _extended(result, following, num_forced)


def _extended(result: StepResult, following: dict[int, list[int]], num_forced: dict[int, int]) -> StepResult:
    """The result with tokens behind some of its runs."""
    token_ids, offsets = result.sampled_token_ids, result.offsets or list(range(len(result.sampled_token_ids) + 1))
    longer: list[int] = []
    ends = [0]
    for run in range(len(offsets) - 1):
        longer += token_ids[offsets[run] : offsets[run + 1]]
        longer += following.get(run, ())
        ends.append(len(longer))
    return replace(result, sampled_token_ids=longer, offsets=ends, num_forced=num_forced)


def constrained_runs(result: StepResult, rows: list[int], live: LiveRows) -> ConstrainedRuns:
    """For `with_forced`, where every token of the result is in its row: the runs that got a token. rows: by run."""
    runs, found, starts = live.grammars.among(rows)
    if offsets := result.offsets:
        kept = [place for place, run in enumerate(runs) if offsets[run + 1] > offsets[run]]
        runs, found, starts = ([column[place] for place in kept] for column in (runs, found, starts))
    return ConstrainedRuns(runs, found, starts, live.states.num_tokens.take(found).tolist())
