"""A permanent row for every live sequence: the worker's whole memory between steps.

    row   token_ids                    num_tokens   block_tables[group]
     0    prompt ... sampled ...           37       12  5  9  0  0
     1    (free)
     2    prompt ... sampled ...          204        7  8 31 30 ...

A plan carries only what changed. Sampled tokens are appended here, and no later plan repeats them. Columns are numpy
arrays, so that a step's batch is a few gathers. The sampling parameters of the same rows are in `sampling/sampler.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from octavo.kernels.arrays import IntArray
from octavo.kernels.device import DECODE_THRESHOLDS, CompiledModel, StepBatch, row_shapes
from octavo.messages import BlockWrite, ForkRow, NewRow, StepPlan
from octavo.sampling.sampler import Sampler
from octavo.structured.rows import ConstrainedRows

if TYPE_CHECKING:
    from octavo.worker.adapters import AdapterStore


class RequestStates:
    """Rows 0 .. max_num_seqs - 1. Shapes: token_ids [rows, max_model_len + 1], tables [rows, max_blocks]. adapters: the
    slot of each row's adapter, or -1; None: no row has one."""

    def __init__(
        self, max_num_seqs: int, max_model_len: int, block_size: int, num_groups: int, *, has_adapters: bool = False
    ) -> None:
        self.block_size = block_size
        shapes = row_shapes(max_num_seqs, max_model_len, block_size, num_groups)
        self.token_ids: IntArray = np.zeros(shapes["token_ids"], np.int32)
        self.num_tokens: IntArray = np.zeros(max_num_seqs, np.int32)
        self.num_prompt_tokens: IntArray = np.zeros(max_num_seqs, np.int32)
        self.block_tables: tuple[IntArray, ...] = tuple(np.zeros(shapes["block_tables"], np.int32))
        self.adapters: IntArray | None = np.full(max_num_seqs, -1, np.int32) if has_adapters else None
        #: what a fork has as its parent
        self._inherited = [self.num_tokens, self.num_prompt_tokens, *self.block_tables]
        if self.adapters is not None:
            self._inherited.append(self.adapters)

    @property
    def num_bytes(self) -> int:
        return self.token_ids.nbytes + sum(table.nbytes for table in self.block_tables)

    def enter(self, new: NewRow) -> None:
        self.token_ids[new.row, : len(new.token_ids)] = new.token_ids
        self.num_tokens[new.row] = len(new.token_ids)
        self.num_prompt_tokens[new.row] = new.num_prompt_tokens
        if self.adapters is not None:
            self.adapters[new.row] = new.adapter

    def fork(self, fork: ForkRow) -> None:
        """The child starts as its parent: same tokens, same blocks."""
        num_tokens = self.num_tokens[fork.parent_row]
        self.token_ids[fork.row, :num_tokens] = self.token_ids[fork.parent_row, :num_tokens]
        for column in self._inherited:
            column[fork.row] = column[fork.parent_row]

    def continue_beams(self, rows: IntArray, parents: IntArray, token_ids: IntArray) -> None:
        """Each row becomes what its parent row was, with one more token. All rows change at once."""
        is_fork = rows != parents
        children, copied = rows[is_fork], parents[is_fork]
        if len(children):
            longest = self.num_tokens[copied].max()
            self.token_ids[children, :longest] = self.token_ids[copied, :longest]
            for column in self._inherited:
                column[children] = column[copied]
        self.token_ids[rows, self.num_tokens[rows]] = token_ids
        self.num_tokens[rows] += 1

    def write_blocks(self, write: BlockWrite) -> None:
        self.block_tables[write.group][write.row, write.start : write.start + len(write.block_ids)] = write.block_ids

    def append(self, rows: IntArray, positions: IntArray, token_ids: IntArray) -> None:
        """One sampled token a row, at its position. A failed draw (-1) leaves its row as it was."""
        drawn = token_ids >= 0
        if not drawn.all():
            rows, positions, token_ids = rows[drawn], positions[drawn], token_ids[drawn]
        self.token_ids[rows, positions] = token_ids
        self.num_tokens[rows] = positions + 1

    def reserve(self, rows: IntArray, positions: IntArray) -> None:
        """A token of each row is being drawn; `fill` writes it later."""
        self.num_tokens[rows] = positions + 1

    def fill(self, rows: IntArray, positions: IntArray, token_ids: IntArray) -> None:
        """Write the tokens of reserved places. A failed draw (-1) writes 0, a harmless id: its sequence may be in the
        next step already, whose kernels read it."""
        self.token_ids[rows, positions] = np.maximum(token_ids, 0)

    def gather(self, plan: StepPlan) -> StepBatch:
        """The step's batch tensors: every scheduled token's id and position, in plan order."""
        rows = np.array(plan.rows, np.int32)
        starts = np.array(plan.num_computed_tokens, np.int32)
        counts = np.array(plan.num_scheduled_tokens, np.int32)
        for entry, guesses in plan.spec_token_ids.items():
            end = starts[entry] + counts[entry]
            # after its tokens, until others overwrite them
            self.token_ids[rows[entry], end - len(guesses) : end] = guesses
        query_start_loc = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(counts, out=query_start_loc[1:])
        if query_start_loc[-1] == len(rows):  # one token each: the decode-only step
            token_rows, positions = rows, starts
        else:
            token_rows = np.repeat(rows, counts)
            first = np.repeat(starts - query_start_loc[:-1], counts)
            positions = first + np.arange(query_start_loc[-1], dtype=np.int32)
        return StepBatch(
            input_ids=self.token_ids[token_rows, positions],
            positions=positions,
            query_start_loc=query_start_loc,
            seq_lens=starts + counts,
            rows=rows,
            block_tables=self.block_tables,
            decode_threshold=_threshold(plan) if plan.spec_token_ids else 1,
            adapters=None if self.adapters is None else self._adapters_of(token_rows),
        )

    def have_adapters(self, rows: IntArray) -> bool:
        return self.adapters is not None and bool((self.adapters[rows] >= 0).any())

    def _adapters_of(self, token_rows: IntArray) -> IntArray | None:
        assert self.adapters is not None, "the rows have adapters"
        slots = self.adapters[token_rows]
        return slots if slots.max(initial=-1) >= 0 else None


class LiveRows:
    """All parts of the rows: tokens and blocks, sampling parameters, and grammars. num_prompt_logprobs: row -> the
    number that its request asks for, if it asks."""

    def __init__(
        self, states: RequestStates, max_num_seqs: int, adapters: AdapterStore | None = None, *, draws: bool = True
    ) -> None:
        """adapters: None if no row may have one. draws: whether tokens are drawn here: then grammars are followed."""
        self.states, self._draws = states, draws
        self.adapters = adapters
        self.grammars = ConstrainedRows()
        self.sampler = Sampler(max_num_seqs, self.grammars)
        self.num_prompt_logprobs: dict[int, int] = {}

    def apply(self, plan: StepPlan, model: CompiledModel) -> None:
        """Apply a plan's changes to the rows and the model's blocks, in the order that `StepPlan` states."""
        for row in plan.freed_rows:
            self.num_prompt_logprobs.pop(row, None)
        if self.grammars.rows:
            self.grammars.leave(plan.freed_rows)
        if self.sampler.processed.rows:
            self.sampler.processed.leave(plan.freed_rows)
        for new in plan.new_rows:
            self.states.enter(new)
            self.sampler.enter(new)
            if self._draws and (new.grammar is not None or new.thoughts is not None):
                self.grammars.enter(new)
            if new.sampling_params.prompt_logprobs is not None:
                self.num_prompt_logprobs[new.row] = new.sampling_params.prompt_logprobs
        if plan.beam_rows:
            columns = plan.beam_rows, plan.beam_parents, plan.beam_token_ids
            rows, parents, token_ids = (np.array(column, np.int32) for column in columns)
            self.states.continue_beams(rows, parents, token_ids)
            self.sampler.inherit(rows, parents)
        for write in plan.block_writes:
            self.states.write_blocks(write)
        for fork in plan.fork_rows:
            self.states.fork(fork)
            self.sampler.fork(fork)
            if fork.parent_row in self.grammars.rows:
                self.grammars.fork(fork.row, fork.parent_row)
        if plan.copies:
            pairs = np.array(plan.copies, np.int32)
            model.copy_blocks(np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]))

    def place_adapters(self, plan: StepPlan, model: CompiledModel) -> None:
        """Put a plan's adapters into their slots. It comes after `apply`, as it may fail."""
        for load in plan.adapters:
            assert self.adapters is not None, "a plan has adapters where the model takes them"
            self.adapters.place(load, model)


def _threshold(plan: StepPlan) -> int:
    """The smallest decode threshold that covers the step's guesses, so that sequences with guesses count as decodes;
    1 if kernels take none that large."""
    longest = 1 + max(map(len, plan.spec_token_ids.values()))
    return next((threshold for threshold in DECODE_THRESHOLDS if longest <= threshold), 1)
