"""MXFP4: nibbles of E2M1 in blocks of 32 inputs, and a power of two for each block.

gpt-oss has its experts so, in stacks that `models/stacked_experts.py` takes apart:

    weight_blocks     U8 [out, in / 32, 16]
    weight_scales     U8 [out, in / 32]: the exponent, plus 127

compressed-tensors has any matrix so (mxfp4-pack-quantized):

    weight_packed     U8 [out, in / 2]
    weight_scale      U8 [out, in / 32]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.errors import ModelLoadError
from octavo.kernels.parameters import Scheme, Shape
from octavo.kernels.scaled import FloatArray, ScaledFormat, ScaledTensor
from octavo.kernels.tensor import StoredTensor
from octavo.quantization.described import Described, KVCodes, is_named
from octavo.quantization.scaled import Held, ScaledScheme, integers

_BLOCK = 32
_NO_NUMBER = 255


@dataclass(frozen=True, slots=True)
class MXFP4Rows(ScaledScheme):
    """As compressed-tensors has it."""

    method: str = "mxfp4"

    def held(self, shape: Shape) -> dict[str, Held]:
        *lead, cols = shape
        rows = len(lead) - 1
        return {
            "weight_packed": Held((*lead, cols // 2), ("U8",), (rows, 1), (rows + 1, 2)),
            "weight_scale": Held((*lead, cols // _BLOCK), ("U8",), (rows, 1), (rows + 1, _BLOCK)),
        }

    def read(self, sources: Mapping[str, StoredTensor]) -> ScaledTensor:
        codes, scales = sources.values()
        *lead, half = codes.shape
        return ScaledTensor(self.format, (*lead, 2 * half), integers(codes), _powers(scales))


@dataclass(frozen=True, slots=True)
class MXFP4Blocks(ScaledScheme):
    """As gpt-oss has it."""

    method: str = "mxfp4"

    def held(self, shape: Shape) -> dict[str, Held]:
        *lead, cols = shape
        rows, blocks = len(lead) - 1, cols // _BLOCK
        return {
            "weight_blocks": Held((*lead, blocks, _BLOCK // 2), ("U8",), (rows, 1), (rows + 1, _BLOCK)),
            "weight_scales": Held((*lead, blocks), ("U8",), (rows, 1), (rows + 1, _BLOCK)),
        }

    def read(self, sources: Mapping[str, StoredTensor]) -> ScaledTensor:
        codes, scales = sources.values()
        *lead, blocks, half = codes.shape
        shape = (*lead, blocks * 2 * half)
        return ScaledTensor(self.format, shape, integers(codes).reshape(*lead, blocks * half), _powers(scales))


def _powers(source: StoredTensor) -> FloatArray:
    exponents = integers(source)
    if (exponents == _NO_NUMBER).any():
        raise ModelLoadError(f"{source.label} has the exponent {_NO_NUMBER}, which is no number; download it again")
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - 127).astype(np.float32)


@dataclass(frozen=True, slots=True)
class OfExperts:
    """The matrices of experts; all else is dense."""

    scheme: Scheme
    skipped: tuple[str, ...]
    method: str = "mxfp4"
    kv_cache: KVCodes | None = None

    def scheme_of(self, name: str, shape: Shape) -> Scheme | None:
        is_expert = ".experts." in name and len(shape) == 2
        return self.scheme if is_expert and not is_named(name, self.skipped) else None


def mxfp4(config: Mapping[str, Any]) -> OfExperts:
    skipped = Described(config).names("modules_to_not_convert")
    return OfExperts(MXFP4Blocks(ScaledFormat("E2M1", (1, _BLOCK))), skipped)
