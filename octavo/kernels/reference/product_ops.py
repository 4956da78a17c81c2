"""Whole texts as steps of a model, some at a time, and ops that know which tokens each product is of.

What calibration is made from: `calibrating.py` sees the inputs of products, `token_weights.py` the gradients of their
outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from octavo.kernels.arrays import IntArray
from octavo.kernels.device import StepBatch
from octavo.kernels.mixture import Gate
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear
from octavo.kernels.reference.attention import StepIndex, StepKeys
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.reference.weights import ReferenceWeights

_TOKENS_AT_ONCE = 2048
#: hidden states [T, H] through a layer
RunLayer = Callable[[Ops, Tensor], Tensor]


class ProductOps(ReferenceOps):
    """tokens: those of the product that is computed, by their places in all texts."""

    def __init__(self, weights: ReferenceWeights | None = None) -> None:
        super().__init__(StepKeys(), ReferenceWeights() if weights is None else weights)
        self.tokens = torch.empty(0, dtype=torch.long)

    def begin(self, step: StepIndex, first: int) -> None:
        """first: the place of its first token."""
        self.step = step
        self.tokens = torch.arange(first, first + len(step.positions))

    def _of_expert(self, x: torch.Tensor, rows: torch.Tensor, up: Linear, down: Linear, gate: Gate) -> torch.Tensor:
        whole, self.tokens = self.tokens, self.tokens[rows]
        y = super()._of_expert(x, rows, up, down, gate)
        self.tokens = whole
        return y


def steps_of(texts: IntArray) -> dict[int, StepIndex]:
    """texts: token ids [texts, length], each from its begin. By the place of a step's first token."""
    count, length = texts.shape
    at_once = max(1, min(count, _TOKENS_AT_ONCE // length))
    return {first * length: _step(texts[first : first + at_once]) for first in range(0, count, at_once)}


def _step(texts: IntArray) -> StepIndex:
    count, length = texts.shape
    return StepIndex(
        StepBatch(
            input_ids=texts.reshape(-1),
            positions=np.tile(np.arange(length, dtype=np.int32), count),
            query_start_loc=np.arange(0, (count + 1) * length, length, dtype=np.int32),
            seq_lens=np.full(count, length, np.int32),
            rows=np.arange(count, dtype=np.int32),
            block_tables=(),
            token_types=np.zeros(texts.size, np.int32),
        )
    )
