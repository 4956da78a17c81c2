"""Layers run one at a time over some texts, and the inputs of their products seen: what calibration is made from.

    texts -> embedding -> hidden states of every token, kept
    each layer:   products(layer)            X^T X of the inputs X of every product, summed over all tokens
              advance(layer, matrices)   the hidden states behind the layer, with other matrices

In memory are the hidden states, one layer's weights in float32, and one layer's sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.latent import Latent
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.reference.product_ops import ProductOps, RunLayer, steps_of
from octavo.kernels.reference.token_weights import TokenWeights, place_of
from octavo.kernels.reference.weights import ReferenceWeights


class LayerRuns:
    """texts: token ids [texts, length]. weights: of their tokens in the sums; none: all count alike."""

    def __init__(self, texts: IntArray, weights: TokenWeights = MappingProxyType({})) -> None:
        self._steps = steps_of(texts)
        self._weights = weights
        self._hidden: dict[int, torch.Tensor | None] = dict.fromkeys(self._steps)

    def embed(self, embedding: Callable[[Ops], Tensor]) -> None:
        self._run(ProductOps(), lambda ops, hidden: embedding(ops), keeps=True)

    def products(self, layer: RunLayer) -> dict[str, FloatArray]:
        """The sums [in, in], by the name of each matrix; one that no token has reached has none. Where all tokens count
        alike, matrices with the same inputs share theirs."""
        ops = _SummingOps(self._weights)
        self._run(ops, layer, keeps=False)
        return {name: each.numpy() for name, each in ops.sums.items()}

    def advance(self, layer: RunLayer, matrices: Mapping[str, FloatArray]) -> None:
        """matrices: by name, instead of the layer's own."""
        weights = ReferenceWeights()
        weights.parameters |= {name: torch.from_numpy(matrix) for name, matrix in matrices.items()}
        self._run(ProductOps(weights), layer, keeps=True)

    @torch.inference_mode()
    def _run(self, ops: ProductOps, layer: RunLayer, keeps: bool) -> None:
        for first, step in self._steps.items():
            ops.begin(step, first)
            after = layer(ops, self._hidden[first])
            if keeps:
                self._hidden[first] = after


class _SummingOps(ProductOps):
    """sums: of the inputs of the products so far, by the name of each matrix."""

    def __init__(self, weights: TokenWeights) -> None:
        super().__init__()
        self.sums: dict[str, torch.Tensor] = {}
        self._token_weights = weights

    def _linear(self, x: torch.Tensor, weight: Linear) -> torch.Tensor:
        self._see_inputs(x, *weight.parts)
        return super()._linear(x, weight)

    def _normed_latent(self, kv: torch.Tensor, layer: AttentionLayer, latent: Latent) -> torch.Tensor:
        c_TR = super()._normed_latent(kv, layer, latent)
        self._see_inputs(c_TR, latent.up)
        return c_TR

    def _see_inputs(self, x: torch.Tensor, *parts: Parameter) -> None:
        if not len(x):  # an expert may get no tokens
            return
        if not self._token_weights:
            self.sums |= dict.fromkeys((part.name for part in parts), self._added(parts[0], x, x))
            return
        for part in parts:
            self._added(part, x, x * self._token_weights[place_of(part)][self.tokens, None])

    def _added(self, part: Parameter, x: torch.Tensor, weighted: torch.Tensor) -> torch.Tensor:
        return self.sums.setdefault(part.name, torch.zeros(x.shape[1], x.shape[1])).addmm_(weighted.T, x)
