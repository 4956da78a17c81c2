"""A step on a GPU: its batch, the upload of its arrays in one copy, and its capture as a CUDA graph.

pinned   | ids | positions | ... |      |  a ring: a step's arrays lie behind those of earlier steps,
device   | ids | positions | ... |      |  and the host waits only when the ring wraps around
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.kernels.cuda.sizes import STAGING_BYTES
from octavo.kernels.device import DECODE_THRESHOLDS, StepBatch

#: `hopper_prefill.py` beats `prefill_attention.py` for sequences of this many tokens or more. One of 160 takes 10.4
#: against 9.0 us, 50 of 160 take 140 against 140, 8 of 256 29 against 37
#: (32 heads of 128, H200).
LONG_SEQUENCE = 256
_ALIGNMENT = 16
_TORCH = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.uint64): torch.int64,
    np.dtype(np.float32): torch.float32,
}
Launched = TypeVar("Launched")


@dataclass(frozen=True, slots=True)
class StepKind:
    """Decides which kernels a step launches: a captured graph serves steps of one kind."""

    has_decodes: bool
    has_chunks: bool
    has_long_chunks: bool = False  # a chunk's sequence has LONG_SEQUENCE tokens or more
    decode_threshold: int = 1  # the most new tokens of a decoding sequence
    has_adapters: bool = False  # a token has one

    @classmethod
    def of(cls, batch: StepBatch, short_chunk: int = 1) -> StepKind:
        """short_chunk: see `AttentionBackend`. Its kernels take decodes of any length up to it."""
        counts, threshold = np.diff(batch.query_start_loc), batch.decode_threshold
        assert threshold in DECODE_THRESHOLDS, f"a decode_threshold of {threshold}"
        if 1 < threshold <= short_chunk or 1 < counts.max() <= short_chunk:
            threshold = short_chunk
        is_chunk = counts > threshold
        is_long = batch.seq_lens[is_chunk] >= LONG_SEQUENCE
        has_adapters = batch.adapters is not None
        return cls(not is_chunk.all(), bool(is_chunk.any()), bool(is_long.any()), threshold, has_adapters)


#: a step of decodes alone
DECODES = StepKind(has_decodes=True, has_chunks=False)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceStep:
    """One step's batch tensors on the device, int32; see `StepBatch`. `rows` index the block tables. max_chunk and
    max_seq_len are for launches that are not captured; they are 0 in a captured step. adapters: -1 where a token has
    none; None in a step of decodes, which finds those of its rows."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    rows: torch.Tensor
    block_tables: tuple[torch.Tensor, ...]
    kind: StepKind
    max_chunk: int = 0
    max_seq_len: int = 0
    token_types: torch.Tensor | None = None
    adapters: torch.Tensor | None = None


def slots_of(batch: StepBatch) -> NDArray[np.int32]:
    """The slot of each token's adapter, or -1."""
    return np.full(len(batch.input_ids), -1, np.int32) if batch.adapters is None else batch.adapters


#: (step, q, out): one phase of a layer's attention; it writes that phase's rows of `out` [T, Q * D]
AttentionLaunch = Callable[[DeviceStep, torch.Tensor, torch.Tensor], None]


class Staging:
    """Owns both rings. Tensors from `upload` are valid for kernels launched before the ring wraps around."""

    def __init__(self, device: torch.device, num_bytes: int = STAGING_BYTES) -> None:
        self._device = device
        self._next = 0
        self._allocate(num_bytes)

    @property
    def num_bytes(self) -> int:
        return self._ring.nbytes

    def upload(self, arrays: Sequence[NDArray[Any]]) -> list[torch.Tensor]:
        """The arrays on the device, in their shapes; uint64 as int64 bits."""
        offsets = [0]
        for array in arrays:
            offsets.append(-(-(offsets[-1] + array.nbytes) // _ALIGNMENT) * _ALIGNMENT)
        begin = self._reserve(offsets[-1])
        for array, offset in zip(arrays, offsets, strict=False):
            at = begin + offset
            self._host[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        end = begin + offsets[-1]
        self._ring[begin:end].copy_(self._pinned[begin:end], non_blocking=True)
        return [
            self._ring[begin + offset : begin + offset + array.nbytes].view(_TORCH[array.dtype]).view(array.shape)
            for array, offset in zip(arrays, offsets, strict=False)
        ]

    def _reserve(self, num_bytes: int) -> int:
        if num_bytes > self._host.nbytes // 4:
            self._wait()
            self._allocate(8 * num_bytes)
        elif self._next + num_bytes > self._host.nbytes:
            self._wait()
            self._next = 0
        begin = self._next
        self._next += num_bytes
        return begin

    def _allocate(self, num_bytes: int) -> None:
        self._pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        self._host: NDArray[np.uint8] = self._pinned.numpy()
        self._ring = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        self._next = 0

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One per GPU for all engines of a process: cuBLAS keeps a workspace of 32 MiB for every stream it has seen."""
    return torch.cuda.Stream(device)


class GraphMemory:
    """The stream and the memory pool of graphs that never run at once."""

    def __init__(self, device: torch.device) -> None:
        self._stream = _capture_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, launch: Callable[[], Launched]) -> tuple[torch.cuda.CUDAGraph, Launched]:
        """The graph, and what `launch` returned. Captured launches do not run; earlier launches keep running."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                launched = launch()
            finally:
                graph.capture_end()
        return graph, launched
