"""Products with matrices that stay codes with scales, by Triton's kernels: without nvcc, and in more formats.

rows        fp8 in bf16 models                                  all others
up to 64    triton/coded/coded_linear.py, which adds a bias; of codes that are looked up in a table only one
more        rows become fp8, too; cuBLAS (`sizes.scaled_rows`)  made dense in the scratch; cuBLAS

Nothing else is fused into them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.ops import Activation
from octavo.kernels.triton.coded.coded_linear import MAX_ROWS, coded_linear, make_dense
from octavo.kernels.triton.coded.weight_stack import LOOKED_UP, WeightStack
from octavo.kernels.triton.elementwise import norm
from octavo.kernels.triton.linear.skinny_linear import library_linear

#: a product by a library with rows in fp8, as `fp8_product` of triton/linear/quantized.py
ScaledProduct = Callable[..., None]


@dataclass(frozen=True, slots=True, eq=False)
class CodedProduct:
    """pieces: one below the other; several where parts have different formats, or sort their inputs in their own order.
    dense: scratch for the whole matrix. codes, scales: for rows in fp8. scaled: multiplies these by the one piece;
    None: the matrix is made dense."""

    pieces: tuple[WeightStack, ...]
    bias: torch.Tensor | None
    dense: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    gpu: GPU
    scaled: ScaledProduct | None = None

    def run(
        self, x: torch.Tensor, *rest: torch.Tensor, norm_weight: torch.Tensor | None = None, eps: float = 1e-6,
        gate: Activation | None = None,
    ) -> None:  # fmt: skip
        """rest: out. out = x W^T + bias; no norm and no gate."""
        (out,) = rest
        assert norm_weight is None, "no norm is fused with codes"
        assert gate is None, "no gate is fused with codes"
        chained = self.gpu.chains
        if len(x) <= self._most_rows:
            for piece, columns, bias in self._columns(out):
                coded_linear(x, piece, columns, bias=bias, chained=chained)
        elif self.scaled is not None:
            (piece,) = self.pieces
            codes, scales, _ = piece.tensors
            given = (codes.view(torch.float8_e4m3fn), scales, self.bias, out, self.codes, self.scales)
            self.scaled(x, *given, chained=chained)
        else:
            depth = self.pieces[0].shape[2]
            dense = self.dense[: out.shape[1] * depth].view(out.shape[1], depth)
            for piece, rows in zip(self.pieces, dense.split([each.shape[1] for each in self.pieces]), strict=True):
                make_dense(piece, rows, chained=chained)
            library_linear(x, dense, out, self.bias)

    def run_add_rms_norm(
        self, x: torch.Tensor, total: torch.Tensor, norm_weight: torch.Tensor, eps: float, out: torch.Tensor,
        room: torch.Tensor | None,
    ) -> None:  # fmt: skip
        """total += x W^T; out = its RMSNorm."""
        self.run(x, out)
        norm.add_rms_norm(out, total, norm_weight, eps, out, chained=self.gpu.chains)

    @property
    def _most_rows(self) -> int:
        """That are multiplied by codes as they are."""
        return 1 if any(piece.code in LOOKED_UP for piece in self.pieces) else MAX_ROWS

    def _columns(self, out: torch.Tensor) -> list[tuple[WeightStack, torch.Tensor, torch.Tensor | None]]:
        """Each piece with its columns of the result, and of the bias."""
        counts = [piece.shape[1] for piece in self.pieces]
        biases = [None] * len(counts) if self.bias is None else self.bias.split(counts)
        return [*zip(self.pieces, out.split(counts, dim=1), biases, strict=True)]
