"""Weights as float32 torch tensors, each dequantised once."""

from __future__ import annotations

import torch

from octavo.kernels.ops import FloatArray
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.tensor import HostTensor


class WeightCache:
    """Torch's view of the model's host data, by identity: a tensor that two places share is held once."""

    def __init__(self) -> None:
        # The key's object is kept with its value: an id is only unique while its object lives.
        self._held: dict[int, tuple[HostTensor | FloatArray, torch.Tensor]] = {}

    def tensor(self, tensor: HostTensor) -> torch.Tensor:
        """Float32, shaped as the tensor is."""
        if id(tensor) not in self._held:
            self._held[id(tensor)] = (tensor, _as_torch(dequantize(tensor)))
        return self._held[id(tensor)][1]

    def array(self, array: FloatArray) -> torch.Tensor:
        if id(array) not in self._held:
            self._held[id(array)] = (array, _as_torch(array))
        return self._held[id(array)][1]


def _as_torch(array: FloatArray) -> torch.Tensor:
    # A file mapped read-only has to be copied: torch knows no read-only tensors.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
