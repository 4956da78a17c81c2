"""Each element-wise op with parameters, and its exact values in float64; every backend is compared with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo.kernels.op import Op
from octavo.kernels.ops import OPS, Ops, Tensor


@dataclass(frozen=True)
class Case:
    """One row of the table. exact: takes float64 tensors, one per input."""

    name: str
    arguments: dict[str, Any]
    exact: Callable[..., torch.Tensor]

    def __str__(self) -> str:
        return "-".join([self.name, *map(str, self.arguments.values())])

    @property
    def op(self) -> Op:
        return OPS[self.name]

    def call(self, ops: Ops, *inputs: Tensor) -> Tensor:
        return getattr(ops, self.name)(*inputs, **self.arguments)

    def expected(self, *inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.exact(*(torch.from_numpy(x.astype(np.float64)) for x in inputs)).numpy()


CASES = [
    Case("add", {}, lambda x, y: x + y),
    Case("activation", {"kind": "silu"}, lambda x: x * torch.sigmoid(x)),
    Case("activation", {"kind": "gelu"}, lambda x: x * torch.special.ndtr(x)),
    Case(
        "activation",
        {"kind": "gelu_tanh"},
        lambda x: x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)),
    ),
    Case("activation", {"kind": "relu"}, lambda x: x.clamp(min=0)),
    Case("softcap", {"cap": 0.7}, lambda x: 0.7 * torch.tanh(x / 0.7)),
    Case("softcap", {"cap": 30.0}, lambda x: 30 * torch.tanh(x / 30)),
    Case("scale", {"factor": 0.7}, lambda x: x * 0.7),
]
