"""From a step's entries to the SamplingBatch that a backend draws from.

A sequence's parameters are written once, into the columns of its permanent row:

    column         row 0   row 1   row 2 ...
    temperature      1.0     0.0     0.7         a step's gather is one `take` per column
    seeds              7       8       7
    ...
    is_special        no      no     yes         only these rows are visited one by one,
                                      └─> SpecialNeeds: penalties, bias, allowed, bad words, min_tokens
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.messages import ForkRow, NewRow
from octavo.sampling.columns import COLUMNS, FILTERS, NUMBERS, PARAMETERS, RAGGED, IntArray, SamplingBatch
from octavo.sampling.special_needs import SpecialNeeds, special_needs

NO_LOGPROBS = -2  # -1 is the whole vocabulary
_OF_A_STEP = ("logits_rows", "positions")  # the other numbers stay the same while a sequence is in its row


class Sampler:
    """Knows how every live row wants its tokens chosen. Owner: the worker."""

    def __init__(self, max_num_seqs: int) -> None:
        self._columns: dict[str, NDArray[Any]] = {
            name: np.zeros(max_num_seqs, dtype) for name, dtype in NUMBERS.items() if name not in _OF_A_STEP
        }
        self._num_logprobs: IntArray = np.full(max_num_seqs, NO_LOGPROBS, np.int32)
        self._scored_ids: dict[int, tuple[int, ...]] = {}  # row -> the ids whose log-probabilities it asks for
        self._has_filters = np.zeros(max_num_seqs, np.bool_)
        self._is_special = np.zeros(max_num_seqs, np.bool_)
        self._special: dict[int, SpecialNeeds] = {}
        self._zero_offsets: IntArray = np.zeros(max_num_seqs + 1, np.int32)

    def enter(self, new: NewRow) -> None:
        """A sequence enters a row; what the row held before is forgotten."""
        row, params = new.row, new.sampling_params
        for name in PARAMETERS:
            self._columns[name][row] = getattr(params, name)
        self._columns["seeds"][row] = new.seed % 2**64
        self._columns["sample_indices"][row] = new.sample_index
        self._columns["prompt_lens"][row] = new.num_prompt_tokens
        self._has_filters[row] = any(getattr(params, name) != neutral for name, neutral in FILTERS.items())
        self._num_logprobs[row] = (params.logprobs or 0) if params.reports_logprobs else NO_LOGPROBS
        self._scored_ids[row] = tuple(params.logprob_token_ids or ())
        self._set_special(row, special_needs(new))

    def fork(self, fork: ForkRow) -> None:
        """A sequence enters a row with its parent's parameters and seed, but random numbers of its own."""
        for column in (*self._columns.values(), self._num_logprobs, self._has_filters):
            column[fork.row] = column[fork.parent_row]
        self._columns["sample_indices"][fork.row] = fork.sample_index
        self._scored_ids[fork.row] = self._scored_ids[fork.parent_row]
        self._set_special(fork.row, self._special.get(fork.parent_row))

    def reports_logprobs(self, rows: IntArray) -> bool:
        """Whether any of these rows reports log-probabilities with its tokens."""
        return bool((self._num_logprobs.take(rows) != NO_LOGPROBS).any())

    def num_logprobs(self, rows: IntArray) -> IntArray:
        """How many best tokens each row reports with a drawn one: -1 is all, NO_LOGPROBS is no report."""
        return self._num_logprobs.take(rows)

    def scored_ids(self, rows: IntArray) -> list[tuple[int, ...]]:
        """Which ids each row reports besides."""
        return [self._scored_ids[row] for row in rows.tolist()]

    def columns(self, rows: IntArray) -> dict[str, NDArray[Any]]:
        """The numbers of these rows, by the names that SamplingBatch gives them."""
        return {name: column.take(rows) for name, column in self._columns.items()}

    def has_filters(self, rows: IntArray) -> bool:
        """Whether filters may cut tokens away in some of these rows."""
        return bool(self._has_filters.take(rows).any())

    def has_special(self, rows: IntArray) -> bool:
        """Whether numbers alone do not say what some of these rows want: their logits are edited."""
        return bool(self._is_special.take(rows).any())

    def prepare(self, rows: IntArray, logits_rows: IntArray, positions: IntArray, token_ids: IntArray) -> SamplingBatch:
        """The batch that draws one token for each of N entries.

        Entry j draws for the sequence in rows[j], from row logits_rows[j] of the logits, the token that will have
        position positions[j]: the sequence's tokens so far are token_ids[rows[j], :positions[j]].
        token_ids is [max_num_seqs, max_model_len]; the other three are [N].
        """
        special = {
            j: self._special[rows[j]].runs(token_ids[rows[j], : positions[j]])
            for j in np.flatnonzero(self._is_special.take(rows)).tolist()
        }
        ragged: dict[str, NDArray[Any]] = {}
        for name, offsets in RAGGED.items():
            runs = {j: entry[name] for j, entry in special.items() if name in entry}
            ragged[name], ragged[offsets] = self._join(runs, COLUMNS[name], len(rows))
        return SamplingBatch(logits_rows=logits_rows, positions=positions, **self.columns(rows), **ragged)

    def _set_special(self, row: int, needs: SpecialNeeds | None) -> None:
        self._is_special[row] = needs is not None
        if needs is None:
            self._special.pop(row, None)
        else:
            self._special[row] = needs

    def _join(
        self, runs: dict[int, NDArray[Any]], dtype: type[np.generic], num_entries: int
    ) -> tuple[NDArray[Any], IntArray]:
        """Values of all entries end to end, and the offsets [num_entries + 1] that part them."""
        if not runs:
            return np.zeros(0, dtype), self._zero_offsets[: num_entries + 1]
        lens = np.zeros(num_entries + 1, np.int32)
        for j, run in runs.items():
            lens[j + 1] = len(run)
        return np.concatenate(list(runs.values())), np.cumsum(lens, dtype=np.int32)
