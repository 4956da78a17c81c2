"""The two feed-forward layers: gated (Llama and its kin) and plain (GPT-2, OPT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octavo.kernels.ops import Activation, Ops, Tensor
from octavo.kernels.parameters import Linear


class MLP(Protocol):
    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        """[T, H] -> [T, H]."""


@dataclass(frozen=True, slots=True, eq=False)
class GatedMLP:
    """down(act(gate(x)) * up(x)), gate and up packed into one product."""

    gate_up: Linear  # [2F, H], gate first
    down: Linear  # [H, F]
    activation: Activation

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        gated = ops.gated_activation(ops.linear(x, self.gate_up), self.activation)
        return ops.linear(gated, self.down)


@dataclass(frozen=True, slots=True, eq=False)
class PlainMLP:
    """down(act(up(x)))."""

    up: Linear  # [F, H]
    down: Linear  # [H, F]
    activation: Activation

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        return ops.linear(ops.activation(ops.linear(x, self.up), self.activation), self.down)
