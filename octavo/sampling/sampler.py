"""Sampler: keeps every row's sampling parameters, and gathers a step's SamplingBatch from them.

A sequence's parameters are written once, into the columns of its permanent row:

    column         row 0   row 1   row 2 ...
    temperature      1.0     0.0     0.7         a step's gather is one `take` per column
    seeds              7       8       7
    ...
    has_edits         no      no     yes         only these rows are visited one by one
                                      └─> SpecialNeeds: penalties, bias, allowed, bad words, min_tokens, functions
    has_grammar       no     yes      no         these get a mask

Special needs do not fit into one number per parameter. Penalties read the sequence's tokens; allowed tokens, bias and
bans are lists. Bans change with the output: a bad word bans its last token only directly after its other tokens, and
min_tokens bans the stop tokens until the output is long enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.messages import ForkRow, NewRow
from octavo.sampling.columns import COLUMNS, FILTERS, NUMBERS, PARAMETERS, RAGGED, IntArray, SameRows, SamplingBatch
from octavo.sampling.logits_processors import ProcessedRows
from octavo.sampling.special_needs import SpecialNeeds

NO_LOGPROBS = -2  # -1 is the whole vocabulary
_OF_A_STEP = ("logits_rows", "positions")  # the other numbers stay the same while a sequence is in its row


class Grammars(Protocol):
    """What rows with a grammar may draw."""

    def made_ahead(self, rows: list[int], lens: list[int]) -> IntArray | None:
        """The same masks, if they were made when the rows' outputs got these lengths."""

    def masks(self, rows: Sequence[int], outputs: Sequence[IntArray]) -> IntArray:
        """By row, after its output so far: [N, words], a bit for each token."""

    def fill(self, made: IntArray, rows: Sequence[int], outputs: Sequence[IntArray]) -> None:
        """Write the masks into `made`."""


class Sampler:
    """The sampling parameters of all rows. Owner: the worker."""

    def __init__(self, max_num_seqs: int, grammars: Grammars | None = None) -> None:
        """grammars: None where no row has any."""
        self._grammars = grammars
        self.processed = ProcessedRows()
        self._columns: dict[str, NDArray[Any]] = {
            name: np.zeros(max_num_seqs, dtype) for name, dtype in NUMBERS.items() if name not in _OF_A_STEP
        }
        self._num_logprobs: IntArray = np.full(max_num_seqs, NO_LOGPROBS, np.int32)
        self._scored_ids: dict[int, tuple[int, ...]] = {}  # row -> ids whose log-probabilities it asks for
        self._has_filters = np.zeros(max_num_seqs, np.bool_)
        self._has_edits = np.zeros(max_num_seqs, np.bool_)
        self._has_grammar = np.zeros(max_num_seqs, np.bool_)
        #: what a fork has as its parent
        self._inherited = [*self._columns.values(), self._num_logprobs, self._has_filters, self._has_grammar]
        self._special: dict[int, SpecialNeeds] = {}
        self._same: SameRows | None = None  # until a sequence enters a row

    def enter(self, new: NewRow) -> None:
        """A sequence enters a row and replaces whatever was there."""
        row, params = new.row, new.sampling_params
        for name in PARAMETERS:
            self._columns[name][row] = getattr(params, name)
        self._columns["seeds"][row] = new.seed % 2**64
        self._columns["sample_indices"][row] = new.sample_index
        self._columns["prompt_lens"][row] = new.num_prompt_tokens
        self._has_filters[row] = any(getattr(params, name) != neutral for name, neutral in FILTERS.items())
        self._num_logprobs[row] = (params.logprobs or 0) if params.reports_logprobs else NO_LOGPROBS
        self._scored_ids[row] = tuple(params.logprob_token_ids or ())
        self._has_grammar[row] = new.grammar is not None
        self._set_special(row, _special_needs(new))

    def fork(self, fork: ForkRow) -> None:
        """A sequence enters a row with its parent's parameters and seed, but random numbers of its own."""
        for column in self._inherited:
            column[fork.row] = column[fork.parent_row]
        self._columns["sample_indices"][fork.row] = fork.sample_index
        self._scored_ids[fork.row] = self._scored_ids[fork.parent_row]
        self._set_special(fork.row, self._special.get(fork.parent_row))

    def inherit(self, rows: IntArray, parents: IntArray) -> None:
        """Rows take their parent rows' parameters: beams of one request, which draw nothing."""
        for column in self._inherited:
            column[rows] = column[parents]
        for row, needs in zip(rows.tolist(), [self._special.get(parent) for parent in parents.tolist()], strict=True):
            self._set_special(row, needs)

    def reports_logprobs(self, rows: IntArray) -> bool:
        """Whether any of these rows reports log-probabilities with its tokens."""
        return self._of(rows).reports_logprobs

    def num_logprobs(self, rows: IntArray) -> IntArray:
        """How many best tokens each row reports with a drawn one: -1 is the whole vocabulary, NO_LOGPROBS no report."""
        return self._num_logprobs.take(rows)

    def scored_ids(self, rows: IntArray) -> list[tuple[int, ...]]:
        """The ids whose log-probabilities each row reports as well."""
        return [self._scored_ids[row] for row in rows.tolist()]

    def columns(self, rows: IntArray) -> dict[str, NDArray[Any]]:
        """The numbers of these rows, by their names in SamplingBatch."""
        return {name: column.take(rows) for name, column in self._columns.items()}

    def has_filters(self, rows: IntArray) -> bool:
        """Whether any of these rows has filters, which cut tokens away."""
        return bool(self._has_filters.take(rows).any())

    def keeps_few(self, rows: IntArray, most: int) -> bool:
        """Whether those of these rows that have filters have a top_k of `most` at most, or take the best token."""
        top_k, temperature = (self._columns[name].take(rows) for name in ("top_k", "temperature"))
        return bool(((top_k > 0) & (top_k <= most) | ~self._has_filters.take(rows) | (temperature == 0)).all())

    def has_special(self, rows: IntArray) -> bool:
        """Whether any of these rows has special needs or a grammar: its logits are edited before the draw."""
        return bool((self._has_edits.take(rows) | self._has_grammar.take(rows)).any())

    def has_masks_alone(self, rows: IntArray) -> bool:
        """Whether a mask is all that edits the logits of any of these rows, and none of them is reported."""
        return not (self._has_edits.take(rows).any() or self.reports_logprobs(rows))

    def prepare(
        self,
        rows: IntArray,
        logits_rows: IntArray,
        positions: IntArray,
        token_ids: IntArray,
        *,
        is_masked: bool = False,
    ) -> SamplingBatch:
        """The batch that draws one token for each of N entries. is_masked: its logits have their masks already.

        Entry j draws the token at positions[j] of the sequence in rows[j], from row logits_rows[j] of the logits. The
        sequence's tokens so far are token_ids[rows[j], :positions[j]]. token_ids: [max_num_seqs, max_model_len]; the
        others: [N].
        """
        of = self._of(rows)
        ragged = dict(of.nothing)
        if of.edited:
            self._add_special(ragged, of.edited, rows, positions, token_ids)
        if self._grammars is not None and not is_masked and of.numbers:
            ragged["mask"], ragged[RAGGED["mask"]] = _masks(self._grammars, of, positions, token_ids)
        return SamplingBatch(logits_rows=logits_rows, positions=positions, **of.columns, **ragged)

    def constrained(self, rows: IntArray) -> tuple[NDArray[np.intp], IntArray, IntArray]:
        """The entries whose rows have a grammar, these rows, and where their outputs begin."""
        of = self._of(rows)
        return of.entries, of.found, of.starts

    def _of(self, rows: IntArray) -> SameRows:
        key = len(rows), rows.tobytes()
        if self._same is None or self._same.key != key:
            self._same = self._gathered(rows, key)
        return self._same

    def _gathered(self, rows: IntArray, key: tuple[int, bytes]) -> SameRows:
        has_grammar, columns = self._has_grammar.take(rows), self.columns(rows)
        zeros, nothing = np.zeros(len(rows) + 1, np.int32), {}
        for name, offsets in RAGGED.items():
            nothing[name], nothing[offsets] = np.zeros(0, COLUMNS[name]), zeros
        entries = np.flatnonzero(has_grammar)
        found, counts = rows[entries], zeros.copy()
        np.cumsum(has_grammar, out=counts[1:])
        return SameRows(
            key=key,
            columns=columns,
            edited=np.flatnonzero(self._has_edits.take(rows)).tolist(),
            nothing=nothing,
            reports_logprobs=bool((self._num_logprobs.take(rows) != NO_LOGPROBS).any()),
            entries=entries,
            found=found,
            numbers=found.tolist(),
            starts=columns["prompt_lens"][entries],
            counts=counts,
        )

    def _add_special(
        self,
        ragged: dict[str, NDArray[Any]],
        edited: list[int],
        rows: IntArray,
        positions: IntArray,
        token_ids: IntArray,
    ) -> None:
        """What the special needs of these entries are now."""
        special = {j: self._special[rows[j]].runs(token_ids[rows[j], : positions[j]]) for j in edited}
        if self.processed.rows:
            for j, entry in special.items():
                self.processed.add(int(rows[j]), int(positions[j]), entry)
        for name, offsets in RAGGED.items():
            if runs := {j: entry[name] for j, entry in special.items() if name in entry}:
                ragged[name], ragged[offsets] = _join(runs, len(rows))

    def _set_special(self, row: int, needs: SpecialNeeds | None) -> None:
        self._has_edits[row] = needs is not None
        self._same = None
        if needs is None:
            self._special.pop(row, None)
            if self.processed.rows:
                self.processed.leave([row])
        else:
            self._special[row] = needs
            self.processed.set(row, needs.processors, needs.num_prompt_tokens)


def _join(runs: dict[int, NDArray[Any]], num_entries: int) -> tuple[NDArray[Any], IntArray]:
    """Values of all entries end to end, and the offsets [num_entries + 1] that part them."""
    lens = np.zeros(num_entries + 1, np.int32)
    for j, run in runs.items():
        lens[j + 1] = len(run)
    return np.concatenate(list(runs.values())), np.cumsum(lens, dtype=np.int32)


def _masks(
    grammars: Grammars, of: SameRows, positions: IntArray, token_ids: IntArray
) -> tuple[NDArray[np.int32], IntArray]:
    """The masks of the entries whose rows have a grammar, as a ragged column and its offsets."""
    ends = positions.take(of.entries)
    masks = grammars.made_ahead(of.numbers, (ends - of.starts).tolist())
    if masks is None:
        masks = grammars.masks(of.numbers, outputs_of(token_ids, of.found, of.starts, ends))
    return masks.reshape(-1), of.counts * masks.shape[1]


def outputs_of(token_ids: IntArray, rows: IntArray, starts: IntArray, ends: IntArray) -> list[IntArray]:
    """Of each row, its tokens from start to end."""
    places = zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True)
    return [token_ids[row, start:end] for row, start, end in places]


def _special_needs(new: NewRow) -> SpecialNeeds | None:
    """None for a plain row: columns of numbers describe it in full."""
    params = new.sampling_params
    bias = params.logit_bias or {}
    min_tokens = params.min_tokens if new.stop_token_ids else 0
    edits = params.has_penalties or params.allowed_token_ids or bias or new.bad_word_ids or min_tokens
    processors = tuple(params.logits_processors or ())
    if not (edits or processors):
        return None
    return SpecialNeeds(
        has_penalties=params.has_penalties,
        allowed=np.array(params.allowed_token_ids or (), np.int32),
        bias_ids=np.array(list(bias.keys()), np.int32),
        bias_values=np.array(list(bias.values()), np.float32),
        always_banned=np.array([word[0] for word in new.bad_word_ids if len(word) == 1], np.int32),
        bad_words=tuple(word for word in new.bad_word_ids if len(word) > 1),
        stop_token_ids=np.array(sorted(new.stop_token_ids), np.int32),
        min_tokens=min_tokens,
        num_prompt_tokens=new.num_prompt_tokens,
        has_edits=bool(edits),
        processors=processors,
    )
