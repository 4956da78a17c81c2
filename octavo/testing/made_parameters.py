"""Wraps arrays of a test or a benchmark as parameters with unique names."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
