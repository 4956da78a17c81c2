"""Dense storage: float32, float16 or bfloat16."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from octavo.kernels.parameters import Shape
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.tensor import HostTensor, StoredTensor, from_array


@dataclass(frozen=True, slots=True)
class Dense:
    """added: what the model adds to the stored numbers, such as the 1 of Gemma's norms."""

    added: float = 0.0
    name: str = "dense"

    def tensors(self, name: str, shape: Shape) -> dict[str, Shape]:
        return {name: shape}

    def compact(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        return self.dense(sources)

    def dense(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        (tensor,) = (source.read() for source in sources)
        return from_array(dequantize(tensor) + np.float32(self.added)) if self.added else tensor
