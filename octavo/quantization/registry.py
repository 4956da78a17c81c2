"""Which schemes Octavo knows, and which one a tensor is stored by."""

from __future__ import annotations

from octavo.kernels.parameters import Scheme
from octavo.kernels.tensor import DENSE_DTYPES, DType
from octavo.quantization.dense import Dense
from octavo.quantization.ggml import GGMLBlocks

DENSE, GGML_BLOCKS = Dense(), GGMLBlocks()


def scheme_of(dtype: DType) -> Scheme:
    return DENSE if dtype in DENSE_DTYPES else GGML_BLOCKS
