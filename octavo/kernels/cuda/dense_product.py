"""A product of a few rows with a dense matrix: one row in CUDA C++, if that takes the matrix, others by Triton."""

from __future__ import annotations

from typing import Any

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.dense_linear import dense_linear, takes
from octavo.kernels.ops import Activation
from octavo.kernels.triton.linear.skinny_linear import Tiling, skinny_linear


class FewRows:
    """gate: with which the matrix is multiplied, if any."""

    def __init__(self, matrix: torch.Tensor, gpu: GPU, gate: Activation | None) -> None:
        self._matrix, self._gpu, self._gate = matrix, gpu, gate
        self._takes_one = takes(matrix, gpu, gate)

    def run(self, x: torch.Tensor, out: torch.Tensor, *, tiling: Tiling, **fused: Any) -> None:
        """As `skinny_linear`."""
        matrix, gpu, gate = self._matrix, self._gpu, self._gate
        if len(x) == 1 and self._takes_one:
            dense_linear(x, matrix, out, gpu=gpu, gate=gate, **fused)
        else:
            skinny_linear(x, matrix, out, gate=gate, tiling=tiling, chained=gpu.chains, **fused)
