"""Which schemes Octavo knows, and which one a parameter is stored by.

A tensor's own type says whether it is dense or ggml's blocks. `SCHEMES` lists the other ways to store the matrices of a
model's layers that a config.json may name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from octavo.kernels.parameters import Scheme, Shape
from octavo.kernels.tensor import DENSE_DTYPES, DType
from octavo.quantization.dense import Dense
from octavo.quantization.ggml import GGMLBlocks

DENSE, GGML_BLOCKS = Dense(), GGMLBlocks()
#: quant_method -> the scheme that a quantization_config describes
SCHEMES: dict[str, Callable[[Mapping[str, Any]], Scheme]] = {}


def scheme_of(dtype: DType) -> Scheme:
    """The scheme of a single tensor, by its type."""
    return DENSE if dtype in DENSE_DTYPES else GGML_BLOCKS


def is_in_layer(name: str, shape: Shape) -> bool:
    """Whether a parameter is one of the matrices that a quantization_config describes."""
    return len(shape) == 2 and re.search(r"\.\d+\.", name) is not None
