"""Steps of decodes alone: from the rows on the device to drawn tokens there, one launch.

    gather rows | plan | forward | logits | draw | advance rows

A step of a size that has not been seen runs kernel by kernel, so that it compiles what it needs, and is captured for
the next time. Sizes are few: a step is padded to the next one. Captured graphs share one pool of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from octavo.kernels.triton.model import TritonModel
from octavo.kernels.triton.program import DeviceStep
from octavo.kernels.triton.rows import advance_rows, gather_rows
from octavo.kernels.triton.sampling import DeviceSamplingBatch
from octavo.worker.device_rows import DeviceRows

#: draw without filters, draw with them, or leave the logits to be edited first
Variant = Literal["plain", "filtered", "logits"]


def padded_size(num_seqs: int, max_num_seqs: int) -> int:
    """1, 2, 4, 8, then in steps of 8 to 256, of 32 to 512, of 64 beyond; max_num_seqs at most."""
    if num_seqs <= 8:
        size = 1 << (num_seqs - 1).bit_length()
    else:
        step = 8 if num_seqs <= 256 else 32 if num_seqs <= 512 else 64
        size = -(-num_seqs // step) * step
    return min(size, max_num_seqs)


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph | None
    logits: torch.Tensor


class DecodeSteps:
    """Owner of the decode step's buffers and of the graphs."""

    def __init__(self, model: TritonModel, rows: DeviceRows, max_num_seqs: int) -> None:
        self._model, self._rows = model, rows
        self._device = model.device
        self._buffers = _Buffers.allocate(max_num_seqs, model.device)
        self._graphs: dict[tuple[int, Variant], _Captured] = {}
        self._is_captured = model.device.type == "cuda"
        if self._is_captured:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._memory = torch.cuda.graph_pool_handle()

    def run(self, size: int, variant: Variant) -> torch.Tensor:
        """Run the step that the rows are flushed for; returns its logits [size, V]. What it drew is in
        `tokens`, unless the variant leaves that to the caller."""
        captured = self._graphs.get((size, variant))
        if captured is None:
            logits = self._launch(size, variant)
            self._graphs[size, variant] = _Captured(self._capture(size, variant), logits)
            return logits
        if captured.graph is None:
            return self._launch(size, variant)
        captured.graph.replay()
        return captured.logits

    def tokens(self, num_seqs: int) -> torch.Tensor:
        """What the last step drew, until the next is launched."""
        return self._buffers.tokens[:num_seqs]

    def _launch(self, size: int, variant: Variant) -> torch.Tensor:
        model, buffers = self._model, self._buffers
        step, draw, rows = buffers.step(size, self._rows.block_tables), buffers.draw(size), self._rows.step_rows[:size]
        gather_rows(rows, self._rows.records, step, draw, chained=model.chained)
        logits = model.decode(step)
        if variant != "logits":
            tokens = buffers.tokens[:size]
            model.draw(logits, draw, tokens, has_edits=False, has_filters=variant == "filtered")
            advance_rows(rows, tokens, self._rows.records, chained=model.chained)
        return logits

    def _capture(self, size: int, variant: Variant) -> torch.cuda.CUDAGraph | None:
        if not self._is_captured:
            return None
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
            try:
                self._launch(size, variant)
            finally:
                graph.capture_end()
        return graph


@dataclass(frozen=True, slots=True, eq=False)
class _Buffers:
    """What a decode step is gathered into, for the largest one; smaller ones use the front."""

    batch: dict[str, torch.Tensor]
    columns: dict[str, torch.Tensor]
    tokens: torch.Tensor

    @classmethod
    def allocate(cls, max_num_seqs: int, device: torch.device) -> _Buffers:
        def zeros(dtype: torch.dtype = torch.int32, size: int = max_num_seqs) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        order = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        batch = {name: zeros() for name in ("input_ids", "positions", "seq_lens", "rows")}
        columns = {name: zeros() for name in ("top_k", "sample_indices", "positions", "prompt_lens")}
        floats = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        columns |= {name: zeros(torch.float32) for name in floats}
        columns |= {name: zeros(size=1) for name in ("history", "allowed", "banned", "bias_ids")}
        columns |= {
            f"{name}_offsets": zeros(size=max_num_seqs + 1) for name in ("history", "allowed", "banned", "bias")
        }
        columns |= {"bias_values": zeros(torch.float32, 1), "seeds": zeros(torch.int64), "logits_rows": order}
        return cls(batch | {"query_start_loc": order}, columns, zeros())

    def step(self, size: int, block_tables: tuple[torch.Tensor, ...]) -> DeviceStep:
        parts: dict[str, Any] = {name: buffer[:size] for name, buffer in self.batch.items()}
        parts["query_start_loc"] = self.batch["query_start_loc"][: size + 1]
        return DeviceStep(**parts, block_tables=block_tables, has_chunks=False, has_decodes=True)

    def draw(self, size: int) -> DeviceSamplingBatch:
        whole = {name for name, column in self.columns.items() if name.endswith("_offsets") or len(column) == 1}
        return DeviceSamplingBatch(
            **{name: column if name in whole else column[:size] for name, column in self.columns.items()}
        )
