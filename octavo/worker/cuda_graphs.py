"""CUDA graphs of steps: one launch in place of hundreds.

    decodes only   gather rows | plan | forward | logits | draw | advance rows    from the device's rows to tokens there
    with chunks                  plan | forward | logits                          from a batch gathered on the host

Launching a forward pass kernel by kernel takes the host as long as several thousand tokens take the GPU, and adds to
the time to first token. The first step of a size is launched that way, and compiles the kernels it needs. A decode step
is then captured at once; a step with chunks, of which there are more kinds, when it comes a second time. Steps are
padded, so there are few sizes. Captured graphs share one memory pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from octavo.kernels.arrays import IntArray
from octavo.kernels.cuda.model import TritonModel
from octavo.kernels.cuda.sizes import chunk_inputs
from octavo.kernels.cuda.step import DECODES, DeviceStep, GraphMemory, StepKind, slots_of
from octavo.kernels.device import StepBatch
from octavo.kernels.triton.linear.row_counts import padded_tokens
from octavo.kernels.triton.rows import advance_rows, gather_rows
from octavo.kernels.triton.sampling.entries import DeviceSamplingBatch
from octavo.kernels.triton.sampling.masked_rows import mask_rows
from octavo.worker.device_rows import DeviceRows

#: draw without filters; draw with filters; or stop at the logits, which must be edited first. On several ranks, draw
#: without whole logits: without filters, or where filters leave few tokens
Variant = Literal["plain", "filtered", "logits", "parted", "parted_top_k"]

MAX_CHUNK_GRAPHS = 160


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph | None
    logits: torch.Tensor


class DecodeSteps:
    """Owner of the decode step's buffers and of the graphs."""

    def __init__(self, model: TritonModel, rows: DeviceRows, max_num_seqs: int, memory: GraphMemory | None) -> None:
        """memory: None if there are no graphs."""
        self._model, self._rows, self._memory = model, rows, memory
        self._buffers = _Buffers.allocate(max_num_seqs, model.device)
        self._graphs: dict[tuple[int, Variant, bool], _Captured] = {}
        #: by the place and the number of the logits, and whether there are filters
        self._masked_draws: dict[tuple[int, int, bool], torch.cuda.CUDAGraph | None] = {}

    def run(self, size: int, variant: Variant, *, has_adapters: bool = False) -> torch.Tensor:
        """Run the step that the rows were flushed for, and return its logits [size, V], with a parted variant only
        those of this rank's tokens. `tokens` returns what it drew, unless the variant is "logits"."""
        key = size, variant, has_adapters
        captured = self._graphs.get(key)
        if captured is None:
            logits = self._launch(*key)
            self._graphs[key] = _Captured(self._capture(*key), logits)
            return logits
        if captured.graph is None:
            return self._launch(*key)
        captured.graph.replay()
        return captured.logits

    def tokens(self, num_seqs: int) -> torch.Tensor:
        """The tokens that the last step drew. The next launch overwrites them."""
        return self._buffers.tokens[:num_seqs]

    def draw_masked(
        self, logits: torch.Tensor, mask_rows_of: torch.Tensor, masks: torch.Tensor, *, has_filters: bool
    ) -> torch.Tensor:
        """Draw from the last step's logits, once they have these masks, which are always in the same memory: the
        tokens. For the arguments, see `mask_rows`."""
        key = logits.data_ptr(), len(logits), has_filters
        launch = partial(self._draw_masked, logits, mask_rows_of, masks, has_filters=has_filters)
        if key not in self._masked_draws:
            launch()
            self._masked_draws[key] = self._memory.capture(launch)[0] if self._memory is not None else None
        elif (graph := self._masked_draws[key]) is not None:
            graph.replay()
        else:
            launch()
        return self.tokens(len(logits))

    def _draw_masked(
        self, logits: torch.Tensor, mask_rows_of: torch.Tensor, masks: torch.Tensor, *, has_filters: bool
    ) -> None:
        model, size, tokens = self._model, len(logits), self.tokens(len(logits))
        mask_rows(logits, mask_rows_of, masks, chained=model.chained)
        model.draw(logits, self._buffers.draw.part(0, size), tokens, has_edits=False, has_filters=has_filters)
        advance_rows(self._rows.step_rows[:size], tokens, self._rows.records, chained=model.chained)

    def _launch(self, size: int, variant: Variant, has_adapters: bool) -> torch.Tensor:
        model, buffers = self._model, self._buffers
        kind = replace(DECODES, has_adapters=has_adapters)
        step, draw = buffers.step(size, self._rows.block_tables, kind), buffers.draw.part(0, size)
        rows = self._rows.step_rows[:size]
        gather_rows(rows, self._rows.records, step, draw.entries, chained=model.chained)
        is_part = variant in ("parted", "parted_top_k")
        logits, tokens = model.decode(step, is_part=is_part), buffers.tokens[:size]
        if is_part:
            assert model.parted_draws is not None, "a rank alone has all logits"
            model.parted_draws[variant == "parted_top_k"].sample(logits, draw, tokens)
        elif variant != "logits":
            model.draw(logits, draw, tokens, has_edits=False, has_filters=variant == "filtered")
        if variant != "logits":
            advance_rows(rows, tokens, self._rows.records, chained=model.chained)
        return logits

    def _capture(self, *key: Any) -> torch.cuda.CUDAGraph | None:
        return self._memory.capture(lambda: self._launch(*key))[0] if self._memory is not None else None


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


@dataclass(frozen=True, slots=True, eq=False)
class _Buffers:
    """The inputs and tokens of the largest decode step; smaller steps use the front."""

    batch: dict[str, torch.Tensor]
    draw: DeviceSamplingBatch
    tokens: torch.Tensor

    @classmethod
    def allocate(cls, max_num_seqs: int, device: torch.device) -> _Buffers:
        def zeros() -> torch.Tensor:
            return torch.zeros(max_num_seqs, dtype=torch.int32, device=device)

        batch = {name: zeros() for name in ("input_ids", "positions", "seq_lens", "rows")}
        batch["query_start_loc"] = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        return cls(batch, DeviceSamplingBatch.zeros(max_num_seqs, device), zeros())

    def step(self, size: int, block_tables: tuple[torch.Tensor, ...], kind: StepKind) -> DeviceStep:
        parts: dict[str, Any] = {name: buffer[:size] for name, buffer in self.batch.items()}
        parts["query_start_loc"] = self.batch["query_start_loc"][: size + 1]
        return DeviceStep(**parts, block_tables=block_tables, kind=kind)
