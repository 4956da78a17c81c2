"""One step's batch on a GPU, and what its launches are told of it by the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from octavo.kernels.device import DECODE_THRESHOLDS, StepBatch

#: Tokens of a sequence from which `hopper_prefill.py` is faster than `prefill_attention.py`: 50 chunks of 160 tokens
#: take it 106 us and the other 78, one of 512 takes 17 and 20, 28 of 550 188 and 195 (16 heads of 128, H100).
LONG_SEQUENCE = 384


@dataclass(frozen=True, slots=True)
class StepKind:
    """What decides which kernels a step launches: a captured graph is good for steps of one kind."""

    has_decodes: bool
    has_chunks: bool
    has_long_chunks: bool = False  # a chunk's sequence has LONG_SEQUENCE tokens or more
    decode_threshold: int = 1  # new tokens of a sequence that decodes, at most

    @classmethod
    def of(cls, batch: StepBatch) -> StepKind:
        threshold = batch.decode_threshold
        assert threshold in DECODE_THRESHOLDS, f"a decode_threshold of {threshold}"
        is_chunk = np.diff(batch.query_start_loc) > threshold
        is_long = batch.seq_lens[is_chunk] >= LONG_SEQUENCE
        return cls(not is_chunk.all(), bool(is_chunk.any()), bool(is_long.any()), threshold)


#: a step of decodes alone
DECODES = StepKind(has_decodes=True, has_chunks=False)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceStep:
    """One step's batch tensors on the device, int32; see `StepBatch`. `rows` index the block tables. max_chunk,
    max_seq_len: for launches that are not captured; 0 in a step that is."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    rows: torch.Tensor
    block_tables: tuple[torch.Tensor, ...]
    kind: StepKind
    max_chunk: int = 0
    max_seq_len: int = 0


#: (step, q, out): a layer's attention, of one phase: writes the rows of `out` [T, Q * D] that belong to the phase
AttentionLaunch = Callable[[DeviceStep, torch.Tensor, torch.Tensor], None]
