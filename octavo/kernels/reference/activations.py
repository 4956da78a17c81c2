"""Activations and the gates of MLPs, in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812

from octavo.kernels.mixture import Gate
from octavo.kernels.ops import Activation

ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


def gated(gate_up: torch.Tensor, gate: Gate) -> torch.Tensor:
    """[T, 2F] -> [T, F]; gate is the first half of the columns."""
    first, up = gate_up.chunk(2, dim=-1)
    if gate.kind != "clamped":
        return ACTIVATIONS[gate.kind](first) * up
    first, up = first.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
    return first * torch.sigmoid(gate.alpha * first) * (up + 1)
