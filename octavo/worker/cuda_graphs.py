"""CUDA graphs of steps: one launch in place of hundreds.

    decodes only   gather rows | plan | forward | logits | draw | advance rows    from the device's rows to tokens there
    with chunks                  plan | forward | logits                          (chunk_graphs.py)

Launching a forward pass kernel by kernel takes the host as long as several thousand tokens take the GPU, and adds to
the time to first token. The first step of a size is launched that way, and compiles the kernels it needs. A decode step
is then captured at once; a step with chunks, of which there are more kinds, when it comes a second time. Steps are
padded, so there are few sizes. Captured graphs share one memory pool.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from octavo.kernels.cuda.model import TritonModel
from octavo.kernels.cuda.step import DECODES, DeviceStep, GraphMemory, StepKind
from octavo.kernels.triton.rows import advance_rows, gather_rows
from octavo.kernels.triton.sampling.entries import DeviceSamplingBatch
from octavo.kernels.triton.sampling.masked_rows import mask_rows
from octavo.worker.device_rows import DeviceRows
from octavo.worker.host_masks import HostMasks

#: draw without filters; draw with filters; or stop at the logits, which must be edited first. On several ranks, draw
#: without whole logits: without filters, or where filters leave few tokens
Variant = Literal["plain", "filtered", "logits", "parted", "parted_top_k"]


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

    def draw_masked(self, logits: torch.Tensor, masks: HostMasks, *, has_filters: bool) -> None:
        """Draw from the last step's logits, once they have these masks, which are copied from where they always are.
        The tokens come to `masks.tokens`."""
        key = logits.data_ptr(), len(logits), has_filters
        launch = partial(self._draw_masked, logits, masks, has_filters=has_filters)
        if key not in self._masked_draws:
            launch()
            self._masked_draws[key] = self._memory.capture(launch)[0] if self._memory is not None else None
        elif (graph := self._masked_draws[key]) is not None:
            graph.replay()
        else:
            launch()

    def _draw_masked(self, logits: torch.Tensor, masks: HostMasks, *, has_filters: bool) -> None:
        model, size, tokens = self._model, len(logits), self.tokens(len(logits))
        mask_rows(logits, *masks.copy(size))
        model.draw(logits, self._buffers.draw.part(0, size), tokens, has_edits=False, has_filters=has_filters)
        advance_rows(self._rows.step_rows[:size], tokens, self._rows.records, chained=model.chained)
        masks.tokens[:size].copy_(tokens, non_blocking=True)

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
            advance_rows(rows, tokens, self._rows.records, self._rows.kept_tokens, chained=model.chained)
        return logits

    def _capture(self, *key: Any) -> torch.cuda.CUDAGraph | None:
        return self._memory.capture(lambda: self._launch(*key))[0] if self._memory is not None else None


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
