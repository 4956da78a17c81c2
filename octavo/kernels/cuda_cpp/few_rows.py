"""What csrc/cuda/few_rows.cuh is given: the arguments of a product of few rows with a quantised weight."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int, c_int64, c_void_p

import torch

from octavo.kernels.cuda_cpp.quantized_format import ACTIVATIONS, part_depth
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight, address
from octavo.kernels.ops import Activation


class Launch(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "scales", "zeros", "bias", "residual", "out", "norm")),
        *((name, c_int64) for name in ("x_stride", "residual_stride", "out_stride", "part_stride")),
        *((name, c_int) for name in ("num_rows", "columns", "depth", "group_bits", "block_scales", "activation")),
        *((name, c_int) for name in ("num_parts", "part_depth", "units_together")),
        ("eps", c_float),
    )

    @classmethod
    def of(
        cls, x: torch.Tensor, weight: QuantizedWeight, out: torch.Tensor, num_parts: int, *, bias: torch.Tensor | None,
        norm_weight: torch.Tensor | None, eps: float, residual: torch.Tensor | None, gate: Activation | None,
        units_together: int = 1,
    ) -> Launch:  # fmt: skip
        """As `quantized_linear`. units_together: see `int4_linear.Tiling`."""
        num_rows, depth = x.shape
        return cls(
            x.data_ptr(), weight.data.data_ptr(), weight.scales.data_ptr(), address(weight.zeros), address(bias),
            address(residual), out.data_ptr(), address(norm_weight),
            x.stride(0), 0 if residual is None else residual.stride(0), out.stride(-2), out.stride(0),
            num_rows, weight.columns // (1 if gate is None else 2), depth, max(0, weight.group.bit_length() - 1),
            weight.scales.shape[-1], ACTIVATIONS[gate], num_parts, part_depth(depth, num_parts), units_together, eps,
        )  # fmt: skip
