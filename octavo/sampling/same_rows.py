"""SameRows: what a sampling batch has of its rows alone, which is kept while steps have the same rows.

    rows 3, 5, 8     columns, entries with edits, entries with grammars        gathered once
                     positions, masks, values that edits read of the tokens    new with each step

Mostly a step has the rows of the one before, and no sequence has entered one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.sampling.columns import COLUMNS, RAGGED, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class SameRows:
    """Of N entries, one for each of the rows. key: see `key_of`. columns: the numbers. edited: the entries with
    special needs. nothing: ragged columns without a value.

    Of those with a grammar: entries, found: the entries and their rows, which are `numbers` in a list. starts: where
    their outputs begin. counts: [N + 1] how many come before each entry.
    """

    key: tuple[int, bytes]
    columns: Mapping[str, NDArray[Any]]
    edited: list[int]
    nothing: Mapping[str, NDArray[Any]]
    reports_logprobs: bool
    entries: NDArray[np.intp]
    found: IntArray
    numbers: list[int]
    starts: IntArray
    counts: IntArray

    @classmethod
    def of(
        cls,
        rows: IntArray,
        columns: Mapping[str, NDArray[Any]],
        has_edits: NDArray[np.bool_],
        has_grammar: NDArray[np.bool_],
        *,
        reports_logprobs: bool,
    ) -> SameRows:
        """has_edits, has_grammar: [N]."""
        zeros = np.zeros(len(rows) + 1, np.int32)
        nothing: dict[str, NDArray[Any]] = {}
        for name, offsets in RAGGED.items():
            nothing[name], nothing[offsets] = np.zeros(0, COLUMNS[name]), zeros
        entries, counts = np.flatnonzero(has_grammar), zeros.copy()
        np.cumsum(has_grammar, out=counts[1:])
        found = rows[entries]
        return cls(
            key=key_of(rows),
            columns=columns,
            edited=np.flatnonzero(has_edits).tolist(),
            nothing=nothing,
            reports_logprobs=reports_logprobs,
            entries=entries,
            found=found,
            numbers=found.tolist(),
            starts=columns["prompt_lens"][entries],
            counts=counts,
        )


def key_of(rows: IntArray) -> tuple[int, bytes]:
    """By which the same rows are known again."""
    return len(rows), rows.tobytes()
