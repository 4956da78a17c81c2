"""Products with matrices whose inputs are sorted by importance (act-order), by the kernels for those in order.

Once codes lie in the order of their groups, only the row is out of order. So its inputs are gathered first, in the
places in which the kernel that multiplies it reads them. Matrices of one product that sort their inputs in the same
way, as GPTQ has q, k and v do, stay one matrix. Nothing else is fused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.quantized_product import QuantizedProduct
from octavo.kernels.cuda_cpp.quantized_weight import OrderedWeight
from octavo.kernels.ops import Activation
from octavo.kernels.triton.elementwise import norm
from octavo.kernels.triton.linear.quantized import gather_inputs


@dataclass(frozen=True, slots=True, eq=False)
class OrderedProduct:
    """products: one below the other, by weights. room: for rows whose inputs are gathered."""

    products: tuple[QuantizedProduct, ...]
    weights: Sequence[OrderedWeight]
    room: torch.Tensor
    gpu: GPU

    def run(
        self, x: torch.Tensor, *rest: torch.Tensor, norm_weight: torch.Tensor | None = None, eps: float = 1e-6,
        gate: Activation | None = None,
    ) -> None:  # fmt: skip
        """rest: out. out = x W^T + bias; no norm and no gate."""
        (out,) = rest
        assert norm_weight is None, "no norm is fused with a gather"
        assert gate is None, "no gate is fused with a gather"
        columns = out.split([weight.matrix.columns for weight in self.weights], dim=1)
        for product, weight, own in zip(self.products, self.weights, columns, strict=True):
            given = self.room[: x.numel()].view(x.shape)
            order = weight.dealt_order if product.deals(len(x)) else weight.order
            gather_inputs(x, order, given, chained=self.gpu.chains)
            product.run_dealt(given, own)

    def run_add_rms_norm(
        self, x: torch.Tensor, total: torch.Tensor, norm_weight: torch.Tensor, eps: float, out: torch.Tensor,
        room: torch.Tensor | None,
    ) -> None:  # fmt: skip
        """total += x W^T; out = its RMSNorm."""
        self.run(x, out)
        norm.add_rms_norm(out, total, norm_weight, eps, out, chained=self.gpu.chains)
