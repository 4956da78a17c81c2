"""The two normalisations, each also in the form that adds to the residual stream on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Parameter


class Norm(Protocol):
    """What a decoder layer needs of a normalisation."""

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        """norm(x); x lives on."""

    def add(self, ops: Ops, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """s = x + residual; returns (norm(s), s). The arguments are dead afterwards."""


@dataclass(frozen=True, slots=True, eq=False)
class RMSNorm:
    weight: Parameter  # [H]
    eps: float

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, ops: Ops, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return ops.add_rms_norm(x, residual, self.weight, self.eps)


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    weight: Parameter  # [H]
    bias: Parameter | None
    eps: float

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, ops: Ops, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = ops.add(x, residual)
        return ops.layer_norm(total, self.weight, self.bias, self.eps), total
