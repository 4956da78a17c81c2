"""ggml's blocks: 32 or 256 numbers as small integers and a few scales, all in one tensor; see `kernels/tensor.py`."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.kernels.parameters import Shape
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.tensor import HostTensor, StoredTensor, from_array


@dataclass(frozen=True, slots=True)
class GGMLBlocks:
    name: str = "ggml"

    def tensors(self, name: str, shape: Shape) -> dict[str, Shape]:
        return {name: shape}

    def compact(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        (source,) = sources
        return source.read()

    def dense(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        return from_array(dequantize(self.compact(sources)))
