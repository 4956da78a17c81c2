"""Wraps arrays of a test or a benchmark as parameters with unique names."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.adapters import AdaptedModule, AdaptedPart, AdapterSizes, ModuleWeights
from octavo.kernels.mixture import SILU, ExpertStack, Gate, Mixture, Routing
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.tensor import HostTensor, at_hand, from_array
from octavo.quantization.registry import scheme_of

_numbers = count()


def parameter(made: HostTensor | NDArray[Any]) -> Parameter:
    """A matrix or a vector; an array is float32 or float16."""
    tensor = made if isinstance(made, HostTensor) else from_array(made)
    stored = at_hand(tensor)
    return Parameter(f"made.{next(_numbers)}", tensor.shape, scheme_of(stored), (stored,))


def linear(*parts: HostTensor | NDArray[Any], bias: NDArray[Any] | None = None) -> Linear:
    """The parts stacked; `bias` is for all of them together."""
    made = tuple(parameter(part) for part in parts)
    if bias is None:
        return Linear(made)
    ends = [sum(part.shape[0] for part in made[: i + 1]) for i in range(len(made))]
    return Linear(made, tuple(parameter(bias[end - part.shape[0] : end]) for part, end in zip(made, ends, strict=True)))


def mixture(routing: Routing, hidden: int, inner: int, *, gate: Gate = SILU, seed: int = 0) -> Mixture:
    """Random experts in float32."""
    rng, name = np.random.default_rng(seed), f"made.{next(_numbers)}"

    def stack(rows: int, columns: int, parts: int = 1) -> ExpertStack:
        shape = (routing.num_experts, parts, rows, columns)
        drawn = rng.standard_normal(shape, np.float32) / np.float32(columns**0.5)
        return ExpertStack(tuple(linear(*matrices) for matrices in drawn))

    router = linear(rng.standard_normal((routing.num_experts, hidden), np.float32) / np.float32(hidden**0.5))
    return Mixture(name, routing, router, None, stack(inner, hidden, 2), stack(hidden, inner), gate)


def adapted(sizes: AdapterSizes, inputs: int, *outputs: int, is_table: bool = False) -> AdaptedModule:
    """A module of parts with so many outputs."""
    parts = tuple(AdaptedPart(f"made.{next(_numbers)}", (each, inputs)) for each in outputs)
    return AdaptedModule(parts, sizes, is_table)


@dataclass(frozen=True, slots=True)
class MadeAdapter:
    """Implements `octavo.kernels.adapters.AdapterSource` with random numbers, the same ones each time."""

    seed: int
    rank: int

    def weights(self, module: AdaptedModule) -> ModuleWeights:
        rng, most = np.random.default_rng(self.seed), module.sizes.max_rank
        a = np.zeros((len(module.parts), most, module.in_features), np.float32)
        b = np.zeros((module.out_features, most), np.float32)
        shape = len(module.parts), self.rank, module.in_features
        a[:, : self.rank] = rng.standard_normal(shape, np.float32) / np.float32(module.in_features**0.5)
        b[:, : self.rank] = rng.standard_normal((module.out_features, self.rank), np.float32)
        return ModuleWeights(self.rank, a.reshape(-1, module.in_features), b)
