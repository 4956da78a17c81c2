"""Scaled matrices in the forms that the C++ kernels multiply."""

from __future__ import annotations

from octavo.kernels.parameters import Parameter
from octavo.kernels.reference.scaled import dequantize_scaled
from octavo.kernels.scaled import ScaledTensor
from octavo.kernels.tensor import DType, HostTensor, from_array


def held_dtype(parameter: Parameter) -> DType:
    """The type in which the backend holds a matrix."""
    return parameter.sources[0].dtype if parameter.scheme.format is None else "F32"


def in_blocks(tensor: ScaledTensor) -> HostTensor:
    return from_array(dequantize_scaled(tensor))
