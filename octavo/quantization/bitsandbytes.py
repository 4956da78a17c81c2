"""bitsandbytes, as saved after quantising: nf4 and fp4 in runs of the whole matrix, or int8 with a scale per output.

4 bits, over the matrix as one flat run of numbers, the first of two in the high half of a byte:

    weight                            U8 [n / 2, 1]
    weight.absmax                     F32 [n / 64], or U8 where the scales are quantised themselves
    weight.quant_map                  F32 [16]
    weight.nested_absmax, _quant_map  F32 [n / 64 / 256], F32 [256]: of quantised scales
    weight.quant_state.bitsandbytes__nf4   JSON: blocksize, shape, nested_offset

8 bits:

    weight          I8 [out, in]
    SCB             F32 [out], the largest magnitude of each output
    weight_format   U8, in some files: 0 for rows one after the other, as above
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from octavo.errors import ConfigError, ModelLoadError, UnsupportedModelError
from octavo.kernels.parameters import Shape
from octavo.kernels.scaled import FloatArray, ScaledFormat, ScaledTensor, numbers_of
from octavo.kernels.tensor import Cut, StoredTensor
from octavo.quantization.described import Described, Everywhere
from octavo.quantization.scaled import Held, ScaledScheme, floats, integers
from octavo.shown import shown

_RUN, _NESTED_RUN = 64, 256
_ANY = -1  # the length of a text is not known


@dataclass(frozen=True, slots=True)
class FourBits(ScaledScheme):
    is_nested: bool
    method: str = "bitsandbytes"

    def held(self, shape: Shape) -> dict[str, Held]:
        size = shape[0] * shape[1]
        runs = size // _RUN
        tensors = {
            "weight": Held((size // 2, 1), ("U8",)),
            "weight.absmax": Held((runs,), ("U8" if self.is_nested else "F32",)),
            "weight.quant_map": Held((16,), ("F32",)),
            "weight.quant_state.bitsandbytes__nf4": Held((_ANY,), ("U8",)),
        }
        if self.is_nested:
            tensors["weight.nested_absmax"] = Held((-(-runs // _NESTED_RUN),), ("F32",))
            tensors["weight.nested_quant_map"] = Held((256,), ("F32",))
        return tensors

    def as_found(self, stem: str, stored: Mapping[str, StoredTensor]) -> FourBits:
        return replace(self, is_nested=f"{stem}weight.nested_absmax" in stored)

    def part(self, sources: tuple[StoredTensor, ...], cut: Cut) -> tuple[StoredTensor, ...]:
        raise ConfigError(
            f"{sources[0].label} is stored as one run of numbers that ranks cannot share: set tensor_parallel_size to 1"
        )

    def read(self, sources: Mapping[str, StoredTensor]) -> ScaledTensor:
        state = sources["weight.quant_state.bitsandbytes__nf4"]
        described = _state(state)
        shape = described.get("shape")
        packed = integers(sources["weight"]).reshape(-1)
        if not _is_shape(shape) or shape[0] * shape[1] != 2 * packed.size or shape[1] % _RUN:
            raise ModelLoadError(
                f"{state.label} has shape {shown(shape)}; allowed are the two sizes of {2 * packed.size} numbers, the "
                f"second a multiple of {_RUN}"
            )
        described.choice("blocksize", (_RUN,), _RUN)
        described.choice("quant_type", ("nf4",), "nf4")
        if not np.array_equal(floats(sources["weight.quant_map"]), numbers_of("NF4")):
            raise ModelLoadError(f"{sources['weight.quant_map'].label} has other numbers than nf4's sixteen")
        rows, cols = shape
        codes = (packed >> np.uint8(4) | packed << np.uint8(4)).astype(np.uint8).reshape(rows, cols // 2)
        scales = self._scales(sources, described).reshape(rows, cols // _RUN)
        return ScaledTensor(self.format, (rows, cols), codes, scales)

    def _scales(self, sources: Mapping[str, StoredTensor], state: Described) -> FloatArray:
        absmax = sources["weight.absmax"]
        if not self.is_nested:
            return floats(absmax)
        state.choice("nested_blocksize", (_NESTED_RUN,), _NESTED_RUN)
        offset = state.get("nested_offset")
        if not isinstance(offset, float):
            raise state.wrong("nested_offset", "a number")
        codes = integers(absmax)
        runs = floats(sources["weight.nested_absmax"])[np.arange(codes.size) // _NESTED_RUN]
        scales: FloatArray = floats(sources["weight.nested_quant_map"])[codes] * runs + np.float32(offset)
        return scales


@dataclass(frozen=True, slots=True)
class EightBits(ScaledScheme):
    """states_layout: whether there is a weight_format."""

    states_layout: bool = False
    method: str = "bitsandbytes"

    def held(self, shape: Shape) -> dict[str, Held]:
        tensors = {"weight": Held(shape, ("I8",), (0, 1), (1, 1)), "SCB": Held(shape[:1], ("F32",), (0, 1))}
        return tensors | ({"weight_format": Held((), ("U8",))} if self.states_layout else {})

    def as_found(self, stem: str, stored: Mapping[str, StoredTensor]) -> EightBits:
        return replace(self, states_layout=f"{stem}weight_format" in stored)

    def read(self, sources: Mapping[str, StoredTensor]) -> ScaledTensor:
        codes, layout = sources["weight"], sources.get("weight_format")
        if layout is not None and (number := int(integers(layout).reshape(-1)[0])) != 0:
            raise UnsupportedModelError(f"{layout.label} is {number}; Octavo reads: 0, rows one after the other")
        scales = floats(sources["SCB"])[:, None] * np.float32(1 / 127)
        return ScaledTensor(self.format, codes.shape, integers(codes).view(np.uint8), scales)


def bitsandbytes(config: Mapping[str, Any]) -> Everywhere:
    described = Described(config)
    scheme: ScaledScheme
    if described.flag("load_in_4bit", False) or described.flag("_load_in_4bit", False):
        described.choice("bnb_4bit_quant_type", ("nf4",), "fp4")
        described.choice("bnb_4bit_quant_storage", ("uint8",), "uint8")
        scheme = FourBits(ScaledFormat("NF4", (1, _RUN)), described.flag("bnb_4bit_use_double_quant", False))
    elif described.flag("load_in_8bit", False) or described.flag("_load_in_8bit", False):
        scheme = EightBits(ScaledFormat("I8", (1, 0)))
    else:
        raise described.wrong("load_in_4bit", "load_in_4bit or load_in_8bit")
    return Everywhere(scheme, described.names("llm_int8_skip_modules"))


def _state(source: StoredTensor) -> Described:
    try:
        values = json.loads(integers(source).tobytes())
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{source.label} is not valid JSON ({error}); download it again") from None
    return Described(values, source.label)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) == 2 and all(type(one) is int and one > 0 for one in shape)
