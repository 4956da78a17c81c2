"""Layers run one at a time over some texts, and the inputs of their products seen: what calibration is made from.

    texts -> embedding -> hidden states of every token, kept twice: behind dense layers and behind quantised ones
    each layer:   products(layer)            of the inputs of every product, summed over all tokens,
                                             X^T X        X: behind quantised layers
                                             (D - X)^T X  D: behind dense ones, which this moves on
                                             (S - R)^T X  of a product that is added to the stream: S and R are the
                                                          sums, behind dense and behind quantised layers
                  advance(layer, matrices)   the hidden states behind the layer, with quantised matrices

In memory are the hidden states, one layer's weights in float32, and one layer's sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.device import StepBatch, allocate_pool
from octavo.kernels.kv_layout import KVGroup, KVLayout
from octavo.kernels.latent import Latent
from octavo.kernels.mixture import Mixture
from octavo.kernels.op import Op
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.reference.attention import KVPool, StepIndex
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.reference.weights import ReferenceWeights

_BLOCK_SIZE = 16
_TOKENS_AT_ONCE = 2048
#: hidden states [T, H] through a layer
RunLayer = Callable[[Ops, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Sums of a product's inputs. moments: X^T X [in, in]. drift: (D - X)^T X; pull: (S - R)^T X [out, in]; of both one
    at most."""

    moments: FloatArray
    drift: FloatArray | None = None
    pull: FloatArray | None = None


class LayerRuns:
    """texts: token ids [texts, length]. keys: what one layer keeps of a token; layers take turns in the same blocks."""

    def __init__(self, texts: IntArray, keys: KVGroup) -> None:
        count, length = texts.shape
        at_once = max(1, min(count, _TOKENS_AT_ONCE // length))
        self._steps = [StepIndex(_batch(texts[start : start + at_once])) for start in range(0, count, at_once)]
        layout = KVLayout(1 + at_once * _num_blocks(length), _BLOCK_SIZE, (keys,), "float32")
        self._cache = KVPool(layout, allocate_pool(layout))
        self._dense: list[torch.Tensor] = []
        self._hidden: list[torch.Tensor] = []

    @torch.inference_mode()
    def embed(self, embedding: Callable[[Ops], Tensor]) -> None:
        ops = ReferenceOps(self._cache, ReferenceWeights())
        for step in self._steps:
            ops.step = step
            self._hidden.append(embedding(ops))
        self._dense = list(self._hidden)

    @torch.inference_mode()
    def products(self, layer: RunLayer) -> dict[str, Seen]:
        """By the name of each matrix; one that no token has reached has none. Matrices with the same inputs share
        theirs."""
        ops = _SeeingOps(self._cache, ReferenceWeights())
        for index, step in enumerate(self._steps):
            ops.step, ops.inputs, ops.totals = step, {}, {}
            dense, hidden = self._dense[index], self._hidden[index]
            if dense is hidden:  # before the first layer
                self._dense[index] = layer(ops, hidden)
                continue
            ops.remembers = True
            self._dense[index] = layer(ops, dense)
            ops.remembers = False
            layer(ops, hidden)
        return ops.seen

    @torch.inference_mode()
    def advance(self, layer: RunLayer, matrices: Mapping[str, FloatArray]) -> None:
        """matrices: by name, instead of the layer's own."""
        weights = ReferenceWeights()
        weights.parameters |= {name: torch.from_numpy(matrix) for name, matrix in matrices.items()}
        ops = ReferenceOps(self._cache, weights)
        for index, step in enumerate(self._steps):
            ops.step = step
            self._hidden[index] = layer(ops, self._hidden[index])


class _SeeingOps(ReferenceOps):
    """First remembers a step's D and S, then adds up the sums. seen: by the name of each matrix. inputs, totals: D and
    S, by the name of the first of the matrices with the same inputs."""

    def __init__(self, cache: KVPool, weights: ReferenceWeights) -> None:
        super().__init__(cache, weights)
        self.remembers = False
        self.seen: dict[str, Seen] = {}
        self.inputs: dict[str, torch.Tensor] = {}
        self.totals: dict[str, torch.Tensor] = {}
        self._last: tuple[str, torch.Tensor, torch.Tensor] | None = None  # product: matrix, inputs, outputs

    def apply(self, op: Op, inputs: tuple[torch.Tensor, ...], arguments: dict[str, Any]) -> Any:
        result = super().apply(op, inputs, arguments)
        if op.name in ("add", "add_rms_norm"):
            self._see_total(inputs, result[1] if isinstance(result, tuple) else result)
        return result

    def _linear(self, x: torch.Tensor, weight: Linear) -> torch.Tensor:
        self._see_inputs(x, *weight.parts)
        y = super()._linear(x, weight)
        self._last = weight.parts[0].name, x, y
        return y

    def _normed_latent(self, kv: torch.Tensor, layer: AttentionLayer, latent: Latent) -> torch.Tensor:
        c_TR = super()._normed_latent(kv, layer, latent)
        self._see_inputs(c_TR, latent.up)
        return c_TR

    def _mixture(self, x: torch.Tensor, layer: Mixture) -> torch.Tensor:
        """An expert's D is forgotten: its rows may be those of other tokens than the rows of its X."""
        kept, self.inputs = self.inputs, {}
        y = super()._mixture(x, layer)
        self.inputs = kept
        return y

    def _see_inputs(self, x: torch.Tensor, *parts: Parameter) -> None:
        name = parts[0].name
        if self.remembers:
            self.inputs[name] = x
        elif len(x):  # an expert may get no tokens
            if name not in self.seen:
                moments = _zeros(x, x)
                drift = _zeros(x, x) if name in self.inputs else None
                self.seen |= dict.fromkeys((part.name for part in parts), Seen(moments, drift))
            seen = self.seen[name]
            torch.from_numpy(seen.moments).addmm_(x.T, x)
            if seen.drift is not None:
                torch.from_numpy(seen.drift).addmm_((self.inputs[name] - x).T, x)

    def _see_total(self, parts: tuple[torch.Tensor, ...], total: torch.Tensor) -> None:
        if self._last is None or all(part is not self._last[2] for part in parts):
            return
        name, x, _ = self._last
        if self.remembers:
            self.totals[name] = total
            self.inputs.pop(name, None)
        elif name in self.totals:
            seen = self.seen[name]
            if seen.pull is None:
                seen = self.seen[name] = replace(seen, pull=_zeros(total, x))
            assert seen.pull is not None, "just made"
            torch.from_numpy(seen.pull).addmm_((self.totals[name] - total).T, x)


def _zeros(outputs: torch.Tensor, inputs: torch.Tensor) -> FloatArray:
    return np.zeros((outputs.shape[1], inputs.shape[1]), np.float32)


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
