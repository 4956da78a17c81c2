"""MixtureMLP: the MLP of a layer of experts, with the shared expert that some families add for every token."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.kernels.mixture import Mixture
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear
from octavo.layers.blocks import GatedMLP


@dataclass(frozen=True, slots=True, eq=False)
class SharedExpert:
    """Computes every token. gate: its result is times sigmoid(gate(x))."""

    mlp: GatedMLP
    gate: Linear | None = None  # [1, H]

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        """Of this rank; all ranks' results are to be added up."""
        y = self.mlp.own(ops, x)
        return y if self.gate is None else ops.gate_rows(y, ops.linear(x, self.gate))


@dataclass(frozen=True, slots=True, eq=False)
class MixtureMLP:
    experts: Mixture
    shared: SharedExpert | None = None

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        shared = None if self.shared is None else self.shared(ops, x)
        y = ops.mixture(x, self.experts)
        if shared is not None:
            y = ops.add(shared, y)
        return ops.all_reduce(y) if self.experts.is_partial else y
