"""The schemes that Octavo knows, and which one stores a parameter.

A tensor's own type says whether it is dense or in ggml's blocks. `SCHEMES` lists the other schemes, which a config.json
names for the matrices of a model's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.errors import UnsupportedModelError
from octavo.kernels.parameters import Scheme, Shape
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.tensor import DENSE_DTYPES, PART_DTYPES, Cut, HostTensor, StoredTensor, from_array
from octavo.quantization.awq import awq
from octavo.quantization.bitsandbytes import bitsandbytes
from octavo.quantization.compressed_tensors import compressed_tensors
from octavo.quantization.described import Quantization
from octavo.quantization.fp8 import fp8
from octavo.quantization.gptq import gptq
from octavo.quantization.mxfp4 import mxfp4


@dataclass(frozen=True, slots=True)
class Dense:
    """float32, float16, bfloat16. added: added to the stored numbers, such as the 1 of Gemma's norms."""

    added: float = 0.0
    name: str = "dense"
    format: None = None
    block_len: int = 1

    def tensors(self, name: str, shape: Shape) -> dict[str, Shape]:
        return {name: shape}

    def part(self, sources: tuple[StoredTensor, ...], cut: Cut) -> tuple[StoredTensor, ...]:
        return tuple(source.part(cut) for source in sources)

    def compact(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        return self.dense(sources)

    def dense(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        (tensor,) = (source.read() for source in sources)
        return from_array(dequantize(tensor) + np.float32(self.added)) if self.added else tensor


@dataclass(frozen=True, slots=True)
class GGMLBlocks:
    """Blocks of 32 or 256 numbers, as small integers and a few scales, in one tensor; see `kernels/tensor.py`."""

    name: str = "ggml"
    format: None = None
    block_len: int = 1

    def tensors(self, name: str, shape: Shape) -> dict[str, Shape]:
        return {name: shape}

    def part(self, sources: tuple[StoredTensor, ...], cut: Cut) -> tuple[StoredTensor, ...]:
        return tuple(source.part(cut) for source in sources)

    def compact(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        (source,) = sources
        return source.read()

    def dense(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        return from_array(dequantize(self.compact(sources)))


DENSE, GGML_BLOCKS = Dense(), GGMLBlocks()
#: quant_method -> what a quantization_config of it says
SCHEMES: dict[str, Callable[[Mapping[str, Any]], Quantization]] = {
    "awq": awq,
    "bitsandbytes": bitsandbytes,
    "compressed-tensors": compressed_tensors,
    "fp8": fp8,
    "gptq": gptq,
    "mxfp4": mxfp4,
}


def scheme_of(tensor: StoredTensor) -> Scheme:
    """The scheme of a single tensor, by its type."""
    if tensor.dtype in PART_DTYPES:
        raise UnsupportedModelError(
            f"{tensor.label} has dtype {tensor.dtype}, but no quantization_config in config.json says what it belongs "
            f"to; Octavo reads {', '.join(SCHEMES)}"
        )
    return DENSE if tensor.dtype in DENSE_DTYPES else GGML_BLOCKS
