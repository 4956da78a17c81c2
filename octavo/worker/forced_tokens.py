"""Forced tokens: what must follow a drawn token, by its row's grammar, is appended without a forward pass for each.

    grammar    {"name": "...", "age": ...}        after  {"  only  name": "  can come
    drawn      {"
    run        {" name ": "                       the next step computes all of it as one chunk, and draws behind it

If a grammar lets nothing follow, its run ends with END_OF_GRAMMAR.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from octavo.messages import END_OF_GRAMMAR, StepResult
from octavo.worker.rows import LiveRows


def with_forced(
    result: StepResult,
    live: LiveRows,
    runs: Iterable[tuple[int, int, int]],
    jumped: Callable[[list[int]], None] | None = None,
) -> StepResult:
    """The result with what its tokens entail. The rows get these tokens, too.

    runs: number of a run, its row, and how many tokens the row had with it. jumped: is told the rows that got tokens.
    """
    states, places = live.states, list(runs)
    numbers, token_ids = [row for _, row, _ in places], states.token_ids
    starts, most = states.num_prompt_tokens[numbers].tolist(), token_ids.shape[1] - 1
    outputs = [token_ids[row, start:end] for (_, row, end), start in zip(places, starts, strict=True)]
    found = live.grammars.following(numbers, outputs, [most - end for _, _, end in places])
    if not any(found):
        return result
    following: dict[int, list[int]] = {}
    num_forced: dict[int, int] = {}
    rows: list[int] = []
    for (run, row, num_tokens), tokens in zip(places, found, strict=True):
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


def constrained_runs(result: StepResult, rows: list[int], live: LiveRows) -> list[tuple[int, int, int]]:
    """For `with_forced`, where every token of the result is in its row: the runs that got a token. rows: by run."""
    lens = np.diff(result.offsets) if result.offsets else np.ones(len(result.sampled_token_ids), np.int64)
    num_tokens = live.states.num_tokens
    return [(run, row, int(num_tokens[row])) for run, row in enumerate(rows) if lens[run] and row in live.grammars.rows]
