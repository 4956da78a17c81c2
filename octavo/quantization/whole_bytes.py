"""A byte for each number: fp8 or int8 codes as they are, and float scales, as fp8 and compressed-tensors store them.

weight             F8_E4M3 or I8 [out, in]
weight_scale       [1] | [out, 1] | [out / 128, in / 128], rounded up; weight_scale_inv in the files of `fp8`
weight_zero_point  I8, like the scales, of asymmetric int8
input_scale        [1], if the activations are static

Files of `fp8` differ: a scale is for the whole matrix or for each output, under either name, and that of static
activations may be missing or called activation_scale. Activations are not rounded here, so it is only checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from octavo.errors import ModelLoadError
from octavo.kernels.parameters import Shape
from octavo.kernels.scaled import ScaledTensor
from octavo.kernels.tensor import StoredTensor
from octavo.quantization.scaled import FLOATS, Held, ScaledScheme, floats, integers, optional_scalar

_SCALES = ("weight_scale", "weight_scale_inv")


@dataclass(frozen=True, slots=True)
class WholeBytes(ScaledScheme):
    """has_input_scale: activations are static."""

    method: str
    scale_name: str = "weight_scale"
    has_input_scale: bool = False

    def held(self, shape: Shape) -> dict[str, Held]:
        rows, cols = self.format.block
        per = self.format.block_of(shape)
        scales = (1,) if self.format.block == (0, 0) else self.format.blocks_of(shape)
        follows = (0, per[0]) if rows else None, (1, per[1]) if cols else None
        assert not self.format.is_nibbles, "nibbles are packed"
        tensors = {
            "weight": Held(shape, ("I8" if self.format.code == "I8" else "F8_E4M3",), (0, 1), (1, 1)),
            self.scale_name: Held(scales, FLOATS, *follows),
        }
        if self.format.has_zeros:
            tensors["weight_zero_point"] = Held(scales, ("I8",), *follows)
        if self.has_input_scale:
            tensors["input_scale"] = Held((1,), FLOATS)
        return tensors

    def as_found(self, stem: str, stored: Mapping[str, StoredTensor]) -> WholeBytes:
        name = next((each for each in (self.scale_name, *_SCALES) if f"{stem}{each}" in stored), self.scale_name)
        scale = stored.get(f"{stem}{name}")
        is_per_output = scale is not None and scale.shape and scale.shape[0] > 1 and prod(scale.shape) == scale.shape[0]
        form = replace(self.format, block=(1, 0)) if self.format.block == (0, 0) and is_per_output else self.format
        has_input_scale = self.has_input_scale and f"{stem}input_scale" in stored
        return replace(self, format=form, scale_name=name, has_input_scale=has_input_scale)

    def read(self, sources: Mapping[str, StoredTensor]) -> ScaledTensor:
        codes, scales = sources["weight"], sources[self.scale_name]
        if self.format.code == "F8_E4M3" and (integers(codes) & 0x7F == 0x7F).any():
            raise ModelLoadError(f"{codes.label} has codes that are no numbers; download the model again")
        zeros, blocks = sources.get("weight_zero_point"), self.format.blocks_of(codes.shape)
        return ScaledTensor(
            self.format,
            codes.shape,
            integers(codes).view(np.uint8),
            floats(scales).reshape(blocks),
            scales.dtype,
            None if zeros is None else integers(zeros).astype(np.int16).reshape(blocks),
            input_scale=optional_scalar(sources.get("input_scale")),
        )
