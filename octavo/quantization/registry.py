"""Which schemes Octavo knows, and which one a parameter is stored by.

A tensor by itself is dense or ggml's blocks, whatever its file says. Where a config.json names another way to store the
matrices inside a model's layers, its line is in `SCHEMES`.
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
    """Of a tensor by itself."""
    return DENSE if dtype in DENSE_DTYPES else GGML_BLOCKS


def stored_tensors(scheme: Scheme | None, name: str, shape: Shape) -> dict[str, Shape] | None:
    """What a checkpoint has in place of a tensor that the scheme applies to; None where it does not."""
    is_layer_matrix = len(shape) == 2 and re.search(r"\.\d+\.", name) is not None
    return scheme.tensors(name, shape) if scheme is not None and is_layer_matrix else None
