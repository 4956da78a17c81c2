"""A model's weights as float32 torch tensors, each dequantised once."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from octavo.distributed.placed_experts import PlacedExperts
from octavo.kernels.arrays import FloatArray
from octavo.kernels.attention_layer import RotaryTable
from octavo.kernels.mixture import Mixture
from octavo.kernels.parameters import Parameter
from octavo.kernels.reference.dequantize import values


class ReferenceWeights:
    """parameters: by name, so that one that two layers share is held once. placed: experts that change places."""

    def __init__(self, parameters: Iterable[Parameter] = (), placed: PlacedExperts | None = None) -> None:
        self.placed = placed
        self.parameters: dict[str, torch.Tensor] = {}
        self._angles: dict[RotaryTable, tuple[torch.Tensor, torch.Tensor]] = {}
        for parameter in parameters:
            self.tensor(parameter)

    @property
    def num_bytes(self) -> int:
        angles = (each for pair in self._angles.values() for each in pair)
        return sum(tensor.nbytes for tensor in (*self.parameters.values(), *angles))

    def tensor(self, parameter: Parameter) -> torch.Tensor:
        if parameter.name not in self.parameters:
            self.parameters[parameter.name] = _as_torch(values(parameter))
        return self.parameters[parameter.name]

    def hold(self, layer: Mixture) -> None:
        """Tell where the experts are that change places."""
        if self.placed is not None:
            experts = [[*up.parts, *up.biases, *down.parts, *down.biases] for up, down in layer.pairs]
            slots = [[self.tensor(part).view(-1).view(torch.uint8) for part in parts] for parts in experts]
            self.placed.hold(layer.name, slots)

    def rotary(self, table: RotaryTable) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines."""
        if table not in self._angles:
            self._angles[table] = (_as_torch(table.cos), _as_torch(table.sin))
        return self._angles[table]


def _as_torch(array: FloatArray) -> torch.Tensor:
    # A read-only mapped file must be copied: torch has no read-only tensors.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
