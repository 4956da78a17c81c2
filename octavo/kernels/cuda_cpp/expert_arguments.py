"""The arguments of the kernels of experts for a few rows, as their sources lay them out."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int, c_int64, c_void_p


class RoutingArguments(Structure):
    """csrc/cuda/row_choice.cuh."""

    _fields_ = (
        *((name, c_void_p) for name in ("logits", "router_bias", "bias", "ids", "weights")),
        *((name, c_int) for name in ("logits_stride", "num_rows", "num_experts", "num_chosen", "first_expert")),
        *((name, c_int) for name in ("num_own", "is_sigmoid", "renormalises", "num_groups", "top_groups", "sums_two")),
        ("scale", c_float),
    )


class ProductArguments(Structure):
    """csrc/cuda/expert_launch.cuh."""

    _fields_ = (
        ("routing", RoutingArguments),
        *((name, c_void_p) for name in ("x", "scales", "zeros", "bias", "residual", "out")),
        *((name, c_int64) for name in ("x_stride", "residual_stride", "out_stride")),
        *((name, c_int) for name in ("columns", "depth", "gate", "group", "num_groups", "row_block")),
        *((name, c_float) for name in ("alpha", "limit")),
    )


class RouterArguments(Structure):
    """csrc/cuda/expert_router.cu."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "norm", "logits", "out")),
        *((name, c_int64) for name in ("x_stride", "out_stride")),
        *((name, c_int) for name in ("num_rows", "num_experts", "depth", "logits_stride")),
        ("eps", c_float),
    )
