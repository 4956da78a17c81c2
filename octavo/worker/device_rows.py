"""The rows of `rows.py` and `sampler.py` mirrored on a device, where decode steps read them.

    host     token_ids, num_tokens, block tables, sampling columns      always current
                 |  only changes, in one copy a step
    device   records [rows, 16], block tables [groups, rows, blocks]    current for a step's rows once they are flushed

A step appends its tokens on the device; the host appends them when they are fetched. A row is stale from the moment a
sequence enters it until it is first flushed. Owner: the device runner.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.kernels.arrays import IntArray
from octavo.kernels.cuda.sizes import device_rows
from octavo.kernels.cuda.step import Staging
from octavo.kernels.triton.rows import LENGTH, TOKEN, advance_rows
from octavo.messages import BlockWrite, ForkRow
from octavo.sampling.columns import entries_of
from octavo.sampling.sampler import Sampler
from octavo.worker.rows import RequestStates


class DeviceRows:
    """records, block_tables and kept_tokens (`triton/rows.py`) are the device's; `step_rows` holds the rows of the
    step, -1 where it is padded."""

    def __init__(
        self,
        states: RequestStates,
        sampler: Sampler,
        staging: Staging,
        device: torch.device,
        adapters: torch.Tensor | None = None,
    ) -> None:
        """adapters: the device's copy of the rows' adapters; None: there are none."""
        self._adapters, self._are_adapters_stale = adapters, True
        self._states, self._sampler, self._staging = states, sampler, staging
        self._num_rows, self._num_blocks = states.block_tables[0].shape
        shapes = device_rows(len(states.block_tables), self._num_rows, self._num_blocks)
        zeros = {name: torch.zeros(shape, dtype=torch.int32, device=device) for name, shape in shapes.items()}
        self.records, self.step_rows, self._tables = zeros["records"], zeros["step_rows"], zeros["tables"]
        self.kept_tokens = zeros["kept_tokens"]
        self.block_tables = tuple(self._tables)
        self._is_stale = np.ones(self._num_rows, np.bool_)
        self._writes: list[tuple[int, int, int, int]] = []  # group, row, start, end
        self._step: tuple[IntArray, int] = (np.zeros(0, np.int32), 0)

    @property
    def num_bytes(self) -> int:
        return self.records.nbytes + self.step_rows.nbytes + self.kept_tokens.nbytes + self._tables.nbytes

    def touch(self, rows: list[int]) -> None:
        """Mark rows that the host changed."""
        self._is_stale[rows] = self._are_adapters_stale = True

    def write_blocks(self, write: BlockWrite) -> None:
        self._writes.append((write.group, write.row, write.start, write.start + len(write.block_ids)))

    def fork(self, fork: ForkRow) -> None:
        """The child's whole block table is new."""
        self._is_stale[fork.row] = self._are_adapters_stale = True
        self._writes += [(group, fork.row, 0, self._num_blocks) for group in range(len(self.block_tables))]

    def continue_beams(self, rows: list[int], parents: list[int]) -> None:
        """Beams have a new last token; those that go on from another's row, its block table as well."""
        self._is_stale[rows] = self._are_adapters_stale = True
        for row, parent in zip(rows, parents, strict=True):
            if row != parent:
                end = int(self._states.num_tokens[row]) // self._states.block_size + 1
                self._writes += [(group, row, 0, end) for group in range(len(self.block_tables))]

    def flush(self, rows: IntArray, size: int) -> None:
        """Upload all changes for a step of these rows, padded to `size`."""
        arrays: list[NDArray[Any]] = []
        if self._writes:
            arrays += self._table_changes()
        stale = rows[self._is_stale[rows]]
        if len(stale):
            arrays += [stale.astype(np.int64), self._records_of(stale)]
        is_new_step = rows is not self._step[0] or size != self._step[1]
        if is_new_step:
            padded = np.full(size, -1, np.int32)
            padded[: len(rows)] = rows
            arrays.append(padded)
        is_adapted = self._are_adapters_stale and self._adapters is not None
        if is_adapted and self._states.adapters is not None:
            arrays.append(self._states.adapters)
        if not arrays:
            return
        uploaded = iter(self._staging.upload(arrays))
        if self._writes:
            self._put_blocks(next(uploaded), next(uploaded))
        if len(stale):
            self._put_records(stale, next(uploaded), next(uploaded))
        if is_new_step:
            self.step_rows[:size].copy_(next(uploaded))
            self._step = (rows, size)
        if is_adapted and self._adapters is not None:
            self._adapters.copy_(next(uploaded))
            self._are_adapters_stale = False

    def flush_blocks(self) -> None:
        """Upload block-table changes, for a step whose batch the host gathered."""
        if self._writes:
            self._put_blocks(*self._staging.upload(self._table_changes()))

    def flush_records(self, rows: IntArray) -> None:
        """Upload these rows' changed records, for a step whose batch the host gathered."""
        stale = rows[self._is_stale[rows]]
        if len(stale):
            self._put_records(stale, *self._staging.upload([stale.astype(np.int64), self._records_of(stale)]))

    def advance(self, rows: IntArray, tokens: torch.Tensor) -> None:
        """Append tokens [N] that were drawn for rows [N]."""
        (device_rows,) = self._staging.upload([rows])
        advance_rows(device_rows, tokens, self.records, chained=False)

    def copy_tokens(self, rows: IntArray, to: torch.Tensor, places: NDArray[np.int64]) -> None:
        """to[places[i]] = the last token of rows[i]."""
        device_rows, device_places = self._staging.upload([rows, places])
        to.index_copy_(0, device_places, self.records[:, TOKEN].index_select(0, device_rows))

    def _put_blocks(self, places: torch.Tensor, values: torch.Tensor) -> None:
        self._tables.view(-1).index_copy_(0, places, values)
        self._writes.clear()

    def _put_records(self, rows: IntArray, places: torch.Tensor, records: torch.Tensor) -> None:
        self.records.index_copy_(0, places, records)
        self._is_stale[rows] = False

    def _table_changes(self) -> list[NDArray[Any]]:
        """Indices and values to write. An index written twice gets its final value both times."""
        places, values = [], []
        for group, row, start, end in self._writes:
            first = (group * self._num_rows + row) * self._num_blocks
            places.append(np.arange(first + start, first + end))
            values.append(self._states.block_tables[group][row, start:end])
        return [np.concatenate(places), np.concatenate(values)]

    def _records_of(self, rows: IntArray) -> IntArray:
        num_tokens = self._states.num_tokens[rows]
        records = entries_of(self._sampler.columns(rows), len(rows))
        records[:, TOKEN], records[:, LENGTH] = self._states.token_ids[rows, num_tokens - 1], num_tokens
        return records
