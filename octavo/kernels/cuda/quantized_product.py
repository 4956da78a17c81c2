"""Products with matrices that stay quantised on the device.

rows        fp8 in bf16 models                                  all others
up to 16    csrc/cuda/quantized_linear.cu, for int4 int4_linear.cu, for fp8 on Hopper fp8_linear.cu, if shared memory
            holds the rows; with what is fused. Of fp8 with scales of outputs up to 4
more        rows become fp8, too; cuBLAS (`sizes.scaled_rows`)  made dense in the scratch; cuBLAS

On Hopper wide_codes.cu multiplies from 9 rows on, of int8 from 3: up to 64 by fp8 in blocks, up to 3,072 by integers.
What that kernel does not take, or without nvcc: `coded_product.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from octavo.kernels.cuda.coded_product import ScaledProduct
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.sizes import MAX_SPLIT, most_few_rows
from octavo.kernels.cuda_cpp.dequantise import dequantise
from octavo.kernels.cuda_cpp.int4_linear import Tiling
from octavo.kernels.cuda_cpp.quantized_format import (
    FEW_CODE_ROWS,
    MOST_WIDE_OF_FP8,
    MOST_WIDE_ROWS,
    fits,
    part_depth,
)
from octavo.kernels.cuda_cpp.quantized_linear import quantized_linear
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight
from octavo.kernels.cuda_cpp.wide_codes import Exchange, wide_codes
from octavo.kernels.ops import Activation
from octavo.kernels.triton.elementwise import elementwise, norm
from octavo.kernels.triton.linear.late_scales import come_late, put_scales
from octavo.kernels.triton.linear.quantized import fp8_block_product, fp8_product
from octavo.kernels.triton.linear.skinny_linear import library_linear

_SCALED: dict[str, ScaledProduct] = {"whole": fp8_product, "blocks": fp8_block_product}


class Product(Protocol):
    """A product of a quantised matrix; see `QuantizedProduct`."""

    def run(
        self, x: torch.Tensor, *rest: torch.Tensor, norm_weight: torch.Tensor | None = None, eps: float = 1e-6,
        gate: Activation | None = None,
    ) -> None: ...  # fmt: skip

    def run_add_rms_norm(
        self, x: torch.Tensor, total: torch.Tensor, norm_weight: torch.Tensor, eps: float, out: torch.Tensor,
        room: torch.Tensor | None,
    ) -> None: ...  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedProduct:
    """dense: scratch for the whole matrix. codes, scales: for rows in fp8. scaled: multiplies these; None: the matrix
    is made dense. one: is 1. exchange: room of `wide_codes`; None: it does not take such a matrix."""

    weight: QuantizedWeight
    bias: torch.Tensor | None
    dense: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    gpu: GPU
    scaled: ScaledProduct | None
    one: torch.Tensor
    exchange: Exchange | None = None

    def run(
        self, x: torch.Tensor, *rest: torch.Tensor, norm_weight: torch.Tensor | None = None, eps: float = 1e-6,
        gate: Activation | None = None,
    ) -> None:  # fmt: skip
        """rest: a residual, perhaps, and out; otherwise as `quantized_linear`. Only few rows may come with a norm, a
        residual or a gate."""
        *residuals, out = rest
        if self.takes(len(x), gated=gate is not None):
            quantized_linear(
                x, self.weight, out, gpu=self.gpu, bias=self.bias, norm_weight=norm_weight, eps=eps,
                residual=residuals[0] if residuals else None, gate=gate,
            )  # fmt: skip
            return
        fused = (*residuals, norm_weight, gate)
        assert all(each is None for each in fused), "fused only where the kernel for few rows takes it"
        if self.exchange is not None and self.deals(len(x)) and x.numel() <= self.dense.numel():
            wide_codes(x, self.weight, self.bias, out, self.dense, self.exchange, gpu=self.gpu)
        elif self.scaled is not None:
            self._run_scaled(x, out)
        else:
            dense = self.dense[: self.weight.columns * self.weight.depth].view(self.weight.columns, -1)
            dequantise(self.weight, dense, gpu=self.gpu)
            library_linear(x, dense, out, self.bias)

    def deals(self, num_rows: int) -> bool:
        """Whether `run_dealt` reads so many rows with dealt inputs."""
        most = MOST_WIDE_ROWS if self.scaled is None else MOST_WIDE_OF_FP8
        return self.exchange is not None and num_rows <= most and not self.takes(num_rows)

    def run_dealt(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """out = x W^T + bias. x: its inputs are dealt, if `deals`."""
        if self.exchange is not None and self.deals(len(x)):
            wide_codes(x, self.weight, self.bias, out, None, self.exchange, gpu=self.gpu)
        else:
            self.run(x, out)

    def run_quantising(
        self, x: torch.Tensor, out: torch.Tensor, *, norm_weight: torch.Tensor | None = None, eps: float = 1e-6,
        total: torch.Tensor | None = None, activation: Activation | None = None, leaves_scales: bool = False,
        left_by: QuantizedProduct | None = None,
    ) -> None:  # fmt: skip
        """A product whose rows become fp8 in the kernel that norms, adds up or activates them; see `quantise_rows`.
        leaves_scales: out lacks them; left_by: x is its product and lacks them. Few rows are multiplied as they are."""
        if left_by is not None and not left_by.leaves_scales(len(x)):
            left_by = None
        if self.takes(len(x)) and left_by is None:
            if total is not None:
                elementwise.elementwise("add", x, total, total, chained=self.gpu.chains)
                x = total
            if activation is not None:
                x = self._activated(x, activation)
            self.run(x, out, norm_weight=norm_weight, eps=eps)
            return
        before: dict[str, Any] = {"norm_weight": norm_weight, "eps": eps, "total": total, "activation": activation}
        if left_by is not None:
            before["column_scales"] = left_by.weight.scales
        self._run_scaled(x, out, leaves_scales=leaves_scales and self.leaves_scales(len(x)), **before)

    def leaves_scales(self, num_rows: int) -> bool:
        """Whether results of so many rows lack their scales, if `run_quantising` is asked for that."""
        return not self.takes(num_rows)

    def _run_scaled(self, x: torch.Tensor, out: torch.Tensor, *, leaves_scales: bool = False, **before: Any) -> None:
        """leaves_scales: out lacks them, and the bias."""
        assert self.scaled is not None, "these rows do not become fp8"
        is_late = self.scaled is fp8_product and not leaves_scales and come_late(out)
        before |= {"one": self.one} if leaves_scales or is_late else {}
        given = (self.weight.data, self.weight.scales, self.bias, out, self.codes, self.scales)
        self.scaled(x, *given, chained=self.gpu.chains, **before)
        if is_late:
            put_scales(out, self.scales[: len(x)], self.weight.scales, self.bias, chained=self.gpu.chains)

    def _activated(self, x: torch.Tensor, kind: Activation) -> torch.Tensor:
        """Of few rows, [T, 2 in] -> [T, in], in the room for codes."""
        y = self.codes.view(x.dtype)[: len(x) * self.weight.depth].view(len(x), -1)
        elementwise.gated_activation(x, kind, y, chained=self.gpu.chains)
        return y

    def run_add_rms_norm(
        self, x: torch.Tensor, total: torch.Tensor, norm_weight: torch.Tensor, eps: float, out: torch.Tensor,
        room: torch.Tensor | None,
    ) -> None:  # fmt: skip
        """total += x W^T; out = its RMSNorm. room: float32, for sums over parts of the inputs."""
        chained = self.gpu.chains
        if self.takes(len(x)):
            self.run(x, total, total)
            norm.rms_norm(total, norm_weight, eps, out, chained=chained)
        elif room is not None and self.takes(len(x), MAX_SPLIT):
            parts = room[: MAX_SPLIT * out.numel()].view(MAX_SPLIT, *out.shape)
            quantized_linear(x, self.weight, parts, gpu=self.gpu)
            norm.sum_rms_norm(parts, total, norm_weight, eps, out, chained=chained)
        else:
            self.run(x, out)
            norm.add_rms_norm(out, total, norm_weight, eps, out, chained=chained)

    def takes(self, num_rows: int, num_parts: int = 1, *, gated: bool = False) -> bool:
        """Whether the kernel for few rows does."""
        weight = self.weight
        if self.exchange is not None and num_rows > FEW_CODE_ROWS[weight.layout]:
            return False
        if weight.layout == "int4":
            given, has_zeros = (weight.group, weight.depth, num_rows, self.gpu), weight.zeros is not None
            return Tiling.of(*given, has_zeros=has_zeros, is_gated=gated, num_parts=num_parts) is not None
        most = most_few_rows("whole" if self.scaled is fp8_product else None)
        depth = part_depth(weight.depth, num_parts)
        return num_rows <= most and fits(weight.kind, num_rows, depth, self.gpu, is_gated=gated)
