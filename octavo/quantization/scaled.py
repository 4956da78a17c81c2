"""ScaledScheme: what all schemes of codes and scales share; `kernels/scaled.py` is the form they are brought into.

A scheme says which tensors a checkpoint has for a matrix (`held`), and how they become one ScaledTensor (`read`). From
that follow the table of tensors, the cut of each for a rank, the exact numbers, and the errors about what is malformed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError, ModelLoadError, UnsupportedModelError
from octavo.kernels.parameters import Shape
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.reference.scaled import dequantize_scaled
from octavo.kernels.scaled import FloatArray, ScaledFormat, ScaledTensor
from octavo.kernels.tensor import Cut, DType, HostTensor, StoredTensor, from_array

FLOATS: tuple[DType, ...] = ("F32", "BF16", "F16")
#: (dimension, entries): a tensor's dimension that follows one of the matrix, and how many of the matrix share an entry
Follows = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor of a checkpoint that belongs to a matrix. dtypes: the types it may have. outputs, inputs: how it follows
    the matrix's rows and columns; None: it does not."""

    shape: Shape
    dtypes: tuple[DType, ...]
    outputs: Follows = None
    inputs: Follows = None

    def part(self, source: StoredTensor, cut: Cut) -> StoredTensor:
        """What belongs to a part of the matrix."""
        if cut.dimension < len(cut.shape) - 2:  # whole experts
            return source.part(Cut(source.shape, cut.dimension, cut.slices))
        follows = self.outputs if cut.dimension == len(cut.shape) - 2 else self.inputs
        if follows is None:
            return source
        dimension, entries = follows
        size = cut.shape[cut.dimension]
        for place in (each for run in cut.slices for each in (run.start, run.stop)):
            if place % entries and place != size:
                raise ConfigError(
                    f"{source.label} has one entry for {entries} of {size}, and a rank's part would begin or end at "
                    f"{place}: set tensor_parallel_size to a number that divides the matrix between them"
                )
        slices = tuple(slice(run.start // entries, -(-run.stop // entries)) for run in cut.slices)
        return source.part(Cut(source.shape, dimension, slices))


@dataclass(frozen=True, slots=True)
class ScaledScheme(ABC):
    """format: of the ScaledTensor that `compact` gives."""

    format: ScaledFormat

    @property
    @abstractmethod
    def method(self) -> str:
        """The name of the checkpoint's method: "gptq"."""

    @abstractmethod
    def held(self, shape: Shape) -> dict[str, Held]:
        """The tensors, by what follows the matrix's name without `weight`, the codes first."""

    @abstractmethod
    def read(self, sources: Mapping[str, StoredTensor]) -> ScaledTensor:
        """sources: by the same names; checked by type."""

    def as_found(self, stem: str, stored: Mapping[str, StoredTensor]) -> ScaledScheme:
        """The variant of this scheme by the tensors that a file has for a matrix. stem: its name without `weight`."""
        return self

    @property
    def name(self) -> str:
        return f"{self.method} ({self.format.label})"

    @property
    def block_len(self) -> int:
        return self.format.block[1] or (8 if self.format.is_nibbles else 1)

    def tensors(self, name: str, shape: Shape) -> dict[str, Shape]:
        if self.format.block[0] == 1 and shape[-1] % self.block_len:  # blocks of many rows may end early
            raise ModelLoadError(
                f"tensor {name!r} has {shape[-1]} inputs, which {self.name} does not divide: allowed are multiples of "
                f"{self.block_len}"
            )
        stem = name.removesuffix("weight")
        return {stem + suffix: held.shape for suffix, held in self.held(shape).items()}

    def part(self, sources: tuple[StoredTensor, ...], cut: Cut) -> tuple[StoredTensor, ...]:
        held = self.held(cut.shape).values()
        return tuple(each.part(source, cut) for each, source in zip(held, sources, strict=True))

    def compact(self, sources: tuple[StoredTensor, ...]) -> ScaledTensor:
        held = self.held(_ANY_SHAPE)
        for (suffix, each), source in zip(held.items(), sources, strict=True):
            if source.dtype not in each.dtypes:
                raise UnsupportedModelError(
                    f"{source.label} has dtype {source.dtype}, and {self.method} stores {suffix!r} as "
                    f"{' or '.join(each.dtypes)}"
                )
        tensor = self.read(dict(zip(held, sources, strict=True)))
        if not np.isfinite(tensor.scales).all():
            raise ModelLoadError(f"{sources[0].label}: its scales are not all finite; download the model again")
        return tensor

    def dense(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        return from_array(dequantize_scaled(self.compact(sources)))


#: large enough for every format to lay out its tensors; only their names and types are used
_ANY_SHAPE = (1 << 10, 1 << 10)


def floats(source: StoredTensor) -> FloatArray:
    """A tensor of scales in float32, which holds every type's exactly."""
    return np.array(dequantize(source.read()), np.float32).reshape(source.shape)


def integers(source: StoredTensor) -> NDArray[Any]:
    """A tensor of integers, or of fp8's bytes, as an array."""
    kind = {"F8_E4M3": np.uint8, "U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64}[source.dtype]
    return source.read().data.view(kind).reshape(source.shape)


def optional_scalar(source: StoredTensor | None) -> float | None:
    """The scale of static activations."""
    if source is None:
        return None
    value = float(floats(source).reshape(-1)[0])
    if not (np.isfinite(value) and value > 0):
        raise ModelLoadError(f"{source.label} is {value}, allowed are numbers above 0; download the model again")
    return value
