"""Adapters in torch: the specification of `add_adapters` and `add_table_adapters`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from octavo.kernels.adapters import AdaptedModule, AdapterSource
from octavo.kernels.arrays import IntArray

#: A and B of each module that it changes
PreparedAdapter = dict[AdaptedModule, tuple[torch.Tensor, torch.Tensor]]


class ReferenceAdapters:
    """The matrices of each slot. slots: [T] that of each token of the step, or -1; None: no token has one."""

    def __init__(self, modules: Iterable[AdaptedModule]) -> None:
        self._modules = list(modules)
        self._held: dict[tuple[AdaptedModule, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.slots: IntArray | None = None

    @property
    def num_bytes(self) -> int:
        return sum(matrix.nbytes for pair in self._held.values() for matrix in pair)

    def prepare(self, source: AdapterSource) -> PreparedAdapter:
        weights = {module: source.weights(module) for module in self._modules}
        return {
            module: (torch.from_numpy(one.a), torch.from_numpy(one.b))
            for module, one in weights.items()
            if one is not None
        }

    def place(self, slot: int, prepared: PreparedAdapter) -> None:
        for module in self._modules:
            self._held.pop((module, slot), None)
            if module in prepared:
                self._held[module, slot] = prepared[module]

    def add(self, y: torch.Tensor, x: torch.Tensor, module: AdaptedModule) -> torch.Tensor:
        for rows, a, b in self._rows_of(module):
            y[rows] += _expand(x[rows] @ a.T, b, module)
        return y

    def add_table(self, y: torch.Tensor, ids: torch.Tensor, module: AdaptedModule) -> torch.Tensor:
        is_here = (ids >= 0) & (ids < module.in_features)
        for rows, a, b in self._rows_of(module):
            shrunk = a.T[ids[rows].where(is_here[rows], 0)]
            y[rows] += _expand(shrunk * is_here[rows, None], b, module)
        return y

    def _rows_of(self, module: AdaptedModule) -> Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The rows with each adapter, and its matrices."""
        if self.slots is None:
            return
        slots = torch.from_numpy(self.slots)
        for slot in np.unique(self.slots).tolist():
            if (module, slot) in self._held:
                yield (slots == slot).nonzero()[:, 0], *self._held[module, slot]


def _expand(shrunk: torch.Tensor, b: torch.Tensor, module: AdaptedModule) -> torch.Tensor:
    """Each part's numbers [T, R] by its own rows of B."""
    parts = shrunk.chunk(len(module.parts), dim=-1)
    pieces = torch.split(b, [part.out_features for part in module.parts])
    return torch.cat([part @ piece.T for part, piece in zip(parts, pieces, strict=True)], dim=-1)
