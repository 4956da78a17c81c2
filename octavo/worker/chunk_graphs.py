"""CUDA graphs of steps with chunks: up to the logits, from a batch gathered on the host (cuda_graphs.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from octavo.kernels.arrays import IntArray
from octavo.kernels.cuda.model import TritonModel
from octavo.kernels.cuda.sizes import chunk_inputs
from octavo.kernels.cuda.step import DeviceStep, GraphMemory, StepKind, slots_of
from octavo.kernels.device import StepBatch
from octavo.kernels.triton.linear.row_counts import padded_tokens
from octavo.worker.device_rows import DeviceRows

MAX_CHUNK_GRAPHS = 160


class ChunkSteps:
    """Runs steps with chunks, up to their logits. Owner of their input buffer and of the graphs."""

    def __init__(self, model: TritonModel, rows: DeviceRows, max_num_seqs: int, memory: GraphMemory | None) -> None:
        self._model, self._rows, self._memory = model, rows, memory
        self._max_num_seqs = max_num_seqs
        self._max_num_tokens = model.row_counts[-1]  # a larger one takes the GPU longer than its launches
        self._has_adapters = model.row_adapters is not None
        shape = chunk_inputs(self._max_num_tokens, max_num_seqs, has_adapters=self._has_adapters)
        self._inputs = torch.zeros(shape, dtype=torch.int32, device=model.device)
        #: each graph with the logits that it writes; None: the key has been seen once
        self._graphs: dict[_ChunkKey, tuple[torch.cuda.CUDAGraph, torch.Tensor | None] | None] = {}

    def takes(self, batch: StepBatch) -> bool:
        """Whether a batch can run here. Large ones, and those that cannot be captured, are not."""
        return len(batch.input_ids) <= self._max_num_tokens and self._model.can_capture(batch)

    def run(
        self, batch: StepBatch, wanted: IntArray, complete: Callable[[torch.Tensor], None] | None
    ) -> torch.Tensor | None:
        """Run the step, and return the logits of the wanted tokens in its first rows; None if none is wanted. wanted:
        indices in the step, at most one per sequence. Afterwards the model has the batch's hidden states, as after
        `forward`."""
        num_tokens = padded_tokens(len(batch.input_ids), self._model.row_counts)
        num_seqs = _padded_seqs(len(batch.rows), self._max_num_seqs)
        kind = StepKind.of(batch, self._model.short_chunk)
        if kind.decode_threshold == 1:
            kind = replace(kind, has_chunks=True)  # steps of decodes alone come here seldom, and need no other graph
        key = _ChunkKey(num_tokens, num_seqs, kind, bool(len(wanted)))
        self._rows.flush_blocks()
        step, indices = self._step(key)
        flat = _flat_inputs(batch, wanted, num_tokens, num_seqs)
        if self._has_adapters:
            padded = np.full(num_tokens, -1, np.int32)
            padded[: len(batch.input_ids)] = slots_of(batch)
            flat = np.concatenate([flat, padded])
        (uploaded,) = self._model.staging.upload([flat])
        self._inputs[: len(flat)].copy_(uploaded)
        if complete is not None:
            complete(step.input_ids)
        captured = self._graphs.get(key)
        if captured is None and key in self._graphs and self._memory is not None:
            captured = self._graphs[key] = self._memory.capture(lambda: self._launch(step, indices))
        if captured is not None:
            graph, logits = captured
            graph.replay()
            self._model.take_hidden(num_tokens, kind)
            return logits
        if len(self._graphs) < MAX_CHUNK_GRAPHS:
            self._graphs[key] = None
        return self._launch(step, indices)

    def _launch(self, step: DeviceStep, indices: torch.Tensor | None) -> torch.Tensor | None:
        self._model.run_chunks(step)
        return None if indices is None else self._model.logits_at(indices)

    def _step(self, key: _ChunkKey) -> tuple[DeviceStep, torch.Tensor | None]:
        """Views of the input buffer, as `_flat_inputs` lays it out: the step, and the indices of its wanted tokens."""
        num_tokens, num_seqs = key.num_tokens, key.num_seqs
        sizes = [num_tokens, num_tokens, num_seqs + 1, num_seqs, num_seqs, num_seqs]
        sizes += [num_tokens] if self._has_adapters else []
        parts = torch.split(self._inputs[: sum(sizes)], sizes)
        input_ids, positions, query_start_loc, seq_lens, rows, wanted, *slots = parts
        step = DeviceStep(*(input_ids, positions, query_start_loc, seq_lens, rows, self._rows.block_tables), key.kind)
        step = replace(step, adapters=slots[0]) if slots else step
        return step, wanted if key.has_wanted else None


class _ChunkKey(NamedTuple):
    """The steps that share a graph. num_tokens, num_seqs: padded."""

    num_tokens: int
    num_seqs: int
    kind: StepKind
    has_wanted: bool


def _flat_inputs(batch: StepBatch, wanted: IntArray, num_tokens: int, num_seqs: int) -> IntArray:
    """A batch's arrays in the order of `DeviceStep`, padded with tokens of no sequence and sequences of length 0, then
    the wanted tokens, at most one per sequence, padded with the first token."""
    flat = np.zeros(2 * num_tokens + 4 * num_seqs + 1, np.int32)
    tokens, seqs = flat[: 2 * num_tokens].reshape(2, -1), flat[2 * num_tokens :]
    tokens[0, : len(batch.input_ids)] = batch.input_ids
    tokens[1, : len(batch.positions)] = batch.positions
    seqs[: num_seqs + 1] = len(batch.input_ids)
    seqs[: len(batch.query_start_loc)] = batch.query_start_loc
    rest = seqs[num_seqs + 1 :].reshape(3, -1)
    rest[0, : len(batch.rows)] = batch.seq_lens
    rest[1, : len(batch.rows)] = batch.rows
    rest[2, : len(wanted)] = wanted
    return flat


def _padded_seqs(num_seqs: int, max_num_seqs: int) -> int:
    """1, 8, 32, 128, then powers of two; max_num_seqs at most."""
    size = next((size for size in (1, 8, 32, 128) if num_seqs <= size), 1 << (num_seqs - 1).bit_length())
    return min(size, max_num_seqs)
