"""ReferenceModel: a model bound to the reference backend, which calls its ops one by one in every step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.distributed.collectives import Collectives
from octavo.kernels.adapters import AdapterSource
from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.block_mover import HostMover
from octavo.kernels.device import StepBatch, StepLimits
from octavo.kernels.kv_layout import KVLayout
from octavo.kernels.model import Model
from octavo.kernels.program.recorder import See
from octavo.kernels.reference.adapters import PreparedAdapter, ReferenceAdapters
from octavo.kernels.reference.attention import KVPool, StepIndex
from octavo.kernels.reference.logprobs import top_logprobs
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.reference.sampling import processed_logits, sample
from octavo.kernels.reference.weights import ReferenceWeights
from octavo.sampling.columns import SamplingBatch


class ReferenceModel:
    """Implements `octavo.kernels.device.CompiledModel`. Owns the KV pool and the last step's hidden states."""

    def __init__(
        self,
        model: Model,
        kv: KVLayout,
        pool: NDArray[np.uint8],
        limits: StepLimits,
        weights: ReferenceWeights,
        see: See | None = None,
        ranks: Collectives | None = None,
        adapters: ReferenceAdapters | None = None,
    ) -> None:
        assert pool.nbytes == kv.num_blocks * kv.block_bytes, "the pool holds num_blocks blocks"
        self.pool = pool
        self._limits = limits
        self._blocks = pool.reshape(kv.num_blocks, kv.block_bytes)
        self._cache = KVPool(kv, pool)
        self._ops = ReferenceOps(self._cache, weights, see, ranks, adapters)
        self._body = model.body
        (self._head,) = model.heads.values()
        self._hidden: tuple[torch.Tensor, ...] | None = None
        self._slots: IntArray | None = None  # of the adapters of the last step's tokens

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> None:
        assert len(batch.input_ids) <= self._limits.max_num_tokens, "a step holds max_num_tokens tokens at most"
        assert len(batch.seq_lens) <= self._limits.max_num_seqs, "a step holds max_num_seqs sequences at most"
        self._ops.step = StepIndex(batch)
        self._slots = self._ops.adapters.slots = batch.adapters
        given = () if batch.hidden_states is None else (torch.from_numpy(batch.hidden_states),)
        self._hidden = self._body(self._ops, *given)

    def calibrate(self, batch: StepBatch) -> None:
        self._cache.calibrates = True
        self.forward(batch)
        self._cache.calibrates = False

    @torch.inference_mode()
    def logits(self, token_indices: IntArray) -> FloatArray:
        assert self._hidden is not None, "logits follow a forward"
        rows = torch.from_numpy(token_indices).long()
        self._ops.adapters.slots = None if self._slots is None else self._slots[token_indices]
        logits: FloatArray = self._head(self._ops, *(hidden[rows] for hidden in self._hidden)).numpy()
        return logits

    def sample(self, logits: FloatArray, batch: SamplingBatch) -> IntArray:
        return sample(logits, batch)

    def host_logits(self, logits: FloatArray, rows: IntArray) -> FloatArray:
        copied: FloatArray = logits[rows].astype(np.float32)
        return copied

    def processed_logits(self, logits: FloatArray, batch: SamplingBatch, drawn: IntArray) -> FloatArray:
        return processed_logits(logits, batch)

    def top_logprobs(
        self, logits: FloatArray, tokens: IntArray, k: int, *, as_logits: bool = False
    ) -> tuple[IntArray, FloatArray, IntArray]:
        return top_logprobs(logits, tokens, k, as_logits=as_logits)

    def copy_blocks(self, source: IntArray, target: IntArray) -> None:
        for source_id, target_id in zip(source, target, strict=True):
            self._blocks[target_id] = self._blocks[source_id]

    @torch.inference_mode()
    def prepare_adapter(self, source: AdapterSource) -> PreparedAdapter:
        return self._ops.adapters.prepare(source)

    def place_adapter(self, slot: int, prepared: PreparedAdapter) -> None:
        self._ops.adapters.place(slot, prepared)

    def mover(self) -> HostMover:
        return HostMover("reference", self._blocks)
