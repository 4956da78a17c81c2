"""Layers run one at a time over some texts, and the inputs of their products seen: what calibration is made from.

    texts -> embedding -> hidden states of every token, kept
    each layer:   products(layer)            X^T X of the inputs X of every product, summed over all tokens
              advance(layer, matrices)   the hidden states behind the layer, with other matrices

In memory are the hidden states, one layer's weights in float32, and one layer's sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.device import StepBatch
from octavo.kernels.host_device import allocate_pool
from octavo.kernels.kv_layout import KVGroup, KVLayout
from octavo.kernels.latent import Latent
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.reference.attention import KVPool, StepIndex
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.reference.weights import ReferenceWeights

_BLOCK_SIZE = 16
_TOKENS_AT_ONCE = 2048
#: hidden states [T, H] through a layer
RunLayer = Callable[[Ops, Tensor], Tensor]


class LayerRuns:
    """texts: token ids [texts, length]. keys: what one layer keeps of a token; layers take turns in the same blocks."""

    def __init__(self, texts: IntArray, keys: KVGroup) -> None:
        count, length = texts.shape
        at_once = max(1, min(count, _TOKENS_AT_ONCE // length))
        self._steps = [StepIndex(_batch(texts[start : start + at_once])) for start in range(0, count, at_once)]
        layout = KVLayout(1 + at_once * _num_blocks(length), _BLOCK_SIZE, (keys,), "float32")
        self._cache = KVPool(layout, allocate_pool(layout))
        self._hidden: list[torch.Tensor | None] = [None] * len(self._steps)

    def embed(self, embedding: Callable[[Ops], Tensor]) -> None:
        self._run(ReferenceOps(self._cache, ReferenceWeights()), lambda ops, hidden: embedding(ops), keeps=True)

    def products(self, layer: RunLayer) -> dict[str, FloatArray]:
        """The sums [in, in], by the name of each matrix; one that no token has reached has none. Matrices with the same
        inputs share theirs."""
        ops = _SeeingOps(self._cache, ReferenceWeights())
        self._run(ops, layer, keeps=False)
        return {name: each.numpy() for name, each in ops.sums.items()}

    def advance(self, layer: RunLayer, matrices: Mapping[str, FloatArray]) -> None:
        """matrices: by name, instead of the layer's own."""
        weights = ReferenceWeights()
        weights.parameters |= {name: torch.from_numpy(matrix) for name, matrix in matrices.items()}
        self._run(ReferenceOps(self._cache, weights), layer, keeps=True)

    @torch.inference_mode()
    def _run(self, ops: ReferenceOps, layer: RunLayer, keeps: bool) -> None:
        for index, step in enumerate(self._steps):
            ops.step = step
            after = layer(ops, self._hidden[index])
            if keeps:
                self._hidden[index] = after


class _SeeingOps(ReferenceOps):
    """sums: of the inputs of the products so far, by the name of each matrix."""

    def __init__(self, cache: KVPool, weights: ReferenceWeights) -> None:
        super().__init__(cache, weights)
        self.sums: dict[str, torch.Tensor] = {}

    def _linear(self, x: torch.Tensor, weight: Linear) -> torch.Tensor:
        self._see_inputs(x, *weight.parts)
        return super()._linear(x, weight)

    def _normed_latent(self, kv: torch.Tensor, layer: AttentionLayer, latent: Latent) -> torch.Tensor:
        c_TR = super()._normed_latent(kv, layer, latent)
        self._see_inputs(c_TR, latent.up)
        return c_TR

    def _see_inputs(self, x: torch.Tensor, *parts: Parameter) -> None:
        if len(x):  # an expert may get no tokens
            first = self.sums.setdefault(parts[0].name, torch.zeros(x.shape[1], x.shape[1]))
            first.addmm_(x.T, x)
            self.sums |= {part.name: first for part in parts}


def _batch(texts: IntArray) -> StepBatch:
    """Every text from its begin, in blocks of its own."""
    count, length = texts.shape
    blocks = 1 + np.arange(count * _num_blocks(length), dtype=np.int32)  # after the null block
    return StepBatch(
        input_ids=texts.reshape(-1),
        positions=np.tile(np.arange(length, dtype=np.int32), count),
        query_start_loc=np.arange(0, (count + 1) * length, length, dtype=np.int32),
        seq_lens=np.full(count, length, np.int32),
        rows=np.arange(count, dtype=np.int32),
        block_tables=(blocks.reshape(count, -1),),
        token_types=np.zeros(texts.size, np.int32),
    )


def _num_blocks(length: int) -> int:
    return -(-length // _BLOCK_SIZE)
