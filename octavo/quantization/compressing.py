"""Dense matrices to compressed-tensors: the tensors and the `quantization_config` that `compressed_tensors.py` reads.

    fp8    float-quantized    a byte a number, a scale for each output; activations rounded to fp8, by token
    int8   int-quantized      the same with integers
    int4   pack-quantized     4 bits in words of 32, a scale, or a scale and a zero, for each group of inputs;
                              activations as they are

These are the formats that vLLM and transformers call FP8_DYNAMIC, W8A8, W4A16 and W4A16_ASYM. A scale has the type of
the dense matrix: readers keep it in the type that the model computes in, and codes are chosen for the scale as it is
rounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.kernels.parameters import Shape
from octavo.kernels.reference.dequantize import convert
from octavo.kernels.scaled import ScaledFormat, ScaledTensor
from octavo.kernels.tensor import DType, HostTensor, from_array
from octavo.quantization.at_load import FORMATS
from octavo.quantization.compressed_tensors import Packed
from octavo.quantization.scaled import ScaledScheme
from octavo.quantization.whole_bytes import WholeBytes

METHOD = "compressed-tensors"
GROUP_SIZES = (128, 64, 32)
_STORED = {"fp8": "float-quantized", "int8": "int-quantized", "int4": "pack-quantized"}


@dataclass(frozen=True, slots=True)
class Compression:
    """kind: a key of FORMATS. scheme: how every matrix is stored."""

    kind: str
    scheme: ScaledScheme

    @property
    def format(self) -> ScaledFormat:
        return self.scheme.format

    def layout(self, shape: Shape, scale_dtype: DType) -> dict[str, tuple[DType, Shape]]:
        """A matrix's tensors, by what follows its name without `weight`."""
        held = self.scheme.held(shape)
        return {
            name: (scale_dtype if name == "weight_scale" else one.dtypes[0], one.shape) for name, one in held.items()
        }

    def tensors(self, matrix: ScaledTensor) -> dict[str, HostTensor]:
        """The same, filled."""
        scales = convert(from_array(matrix.scales), matrix.scale_dtype)
        if isinstance(self.scheme, WholeBytes):
            dtype: DType = "I8" if matrix.format.code == "I8" else "F8_E4M3"
            return {"weight": HostTensor(dtype, matrix.shape, matrix.codes.reshape(-1)), "weight_scale": scales}
        shape = np.array(matrix.shape, np.int64).view(np.uint8)
        found = {
            # eight nibbles a word, the lowest bits first: the bytes of a ScaledTensor
            "weight_packed": HostTensor("I32", (matrix.rows, matrix.cols // 8), matrix.codes.reshape(-1)),
            "weight_scale": scales,
            "weight_shape": HostTensor("I64", (2,), shape),
        }
        return found if matrix.zeros is None else found | {"weight_zero_point": _zero_words(matrix.zeros)}

    def config(self, ignored: Iterable[str]) -> dict[str, Any]:
        """The quantization_config. ignored: linear modules that stay dense."""
        stored, group = _STORED[self.kind], self.format.block[1]
        number = {"num_bits": 4 if self.kind == "int4" else 8, "type": "float" if self.kind == "fp8" else "int"}
        fixed = {"symmetric": not self.format.has_zeros, "actorder": None, "block_structure": None}
        by = {"strategy": "group", "group_size": group} if group else {"strategy": "channel", "group_size": None}
        activations = None
        if self.kind != "int4":
            activations = number | fixed | {"strategy": "token", "group_size": None, "dynamic": True, "observer": None}
        scheme = {
            "targets": ["Linear"],
            "format": stored,
            "weights": number | fixed | by | {"dynamic": False, "observer": "minmax"},
            "input_activations": activations,
            "output_activations": None,
        }
        return {
            "quant_method": METHOD,
            "format": stored,
            "quantization_status": "compressed",
            "config_groups": {"group_0": scheme},
            "ignore": sorted(ignored),
            "kv_cache_scheme": None,
        }


def _zero_words(zeros: NDArray[np.int16]) -> HostTensor:
    """[out, groups] as nibbles in words of eight outputs, the lowest bits first."""
    rows, groups = -(-zeros.shape[0] // 8), zeros.shape[1]
    nibbles = np.zeros((rows, 8, groups), np.uint32)
    nibbles.reshape(-1, groups)[: len(zeros)] = zeros
    shifts = np.arange(0, 32, 4, dtype=np.uint32)[:, None]
    words = np.bitwise_or.reduce(nibbles << shifts, axis=1)
    return HostTensor("I32", (rows, groups), words.view(np.uint8).reshape(-1))


def compression(
    kind: str, shapes: Iterable[Shape], group_size: int | None = None, has_zeros: bool = False
) -> Compression:
    """For matrices of these shapes. group_size: inputs that share a scale of int4; None: the largest size that divides
    every matrix. One size for all, as kernels of other engines join matrices with equal inputs."""
    if kind != "int4":
        if group_size is not None:
            raise ConfigError(f"--group-size is {group_size}, but {kind} has a scale for each output: leave it out")
        if has_zeros:
            raise ConfigError(f"--asymmetric is set, but {kind} has no zero points: leave it out")
        return Compression(kind, WholeBytes(FORMATS[kind], METHOD))
    inputs = sorted({shape[-1] for shape in shapes})
    allowed = [size for size in GROUP_SIZES if all(each % size == 0 for each in inputs)]
    if not allowed:
        raise ConfigError(
            f"scheme is 'int4', but the model has matrices of {inputs[0]} inputs, which groups of 32 do not divide: "
            "choose 'int8' or 'fp8'"
        )
    if group_size is not None and group_size not in allowed:
        raise ConfigError(
            f"--group-size is {group_size}, which does not suit matrices of {', '.join(map(str, inputs))} inputs: "
            f"allowed are {', '.join(map(str, allowed))}"
        )
    return Compression(kind, Packed(ScaledFormat("U4", (1, group_size or allowed[0]), has_zeros), 4))
