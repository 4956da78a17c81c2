"""The schemes that Octavo knows, and which one stores a parameter.

A tensor's own type says whether it is dense or in ggml's blocks. `SCHEMES` lists the other schemes, which a config.json
names for the matrices of a model's layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.kernels.parameters import Scheme, Shape
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.tensor import DENSE_DTYPES, DType, HostTensor, StoredTensor, from_array


@dataclass(frozen=True, slots=True)
class Dense:
    """float32, float16, bfloat16. added: added to the stored numbers, such as the 1 of Gemma's norms."""

    added: float = 0.0
    name: str = "dense"

    def tensors(self, name: str, shape: Shape) -> dict[str, Shape]:
        return {name: shape}

    def compact(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        return self.dense(sources)

    def dense(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        (tensor,) = (source.read() for source in sources)
        return from_array(dequantize(tensor) + np.float32(self.added)) if self.added else tensor


@dataclass(frozen=True, slots=True)
class GGMLBlocks:
    """Blocks of 32 or 256 numbers, as small integers and a few scales, in one tensor; see `kernels/tensor.py`."""

    name: str = "ggml"

    def tensors(self, name: str, shape: Shape) -> dict[str, Shape]:
        return {name: shape}

    def compact(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        (source,) = sources
        return source.read()

    def dense(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        return from_array(dequantize(self.compact(sources)))


DENSE, GGML_BLOCKS = Dense(), GGMLBlocks()
#: quant_method -> the scheme that a quantization_config describes
SCHEMES: dict[str, Callable[[Mapping[str, Any]], Scheme]] = {}


def scheme_of(dtype: DType) -> Scheme:
    """The scheme of a single tensor, by its type."""
    return DENSE if dtype in DENSE_DTYPES else GGML_BLOCKS


def is_in_layer(name: str, shape: Shape) -> bool:
    """Whether a quantization_config covers this parameter: a matrix of a layer."""
    return len(shape) == 2 and re.search(r"\.\d+\.", name) is not None
