"""Slots of adapters in the host's memory, as csrc/cpu/adapter.h reads them."""

from __future__ import annotations

import numpy as np

from octavo.kernels.adapters import AdaptedModule, AdapterSource, FloatArray, ModuleWeights
from octavo.kernels.cpu.library import AdapterSpec, address

PreparedAdapter = dict[AdaptedModule, ModuleWeights | None]


class _Slots:
    """One module's matrices. The system hands out their pages when a slot is first filled."""

    def __init__(self, module: AdaptedModule) -> None:
        sizes, self._is_table = module.sizes, module.is_table
        self.module = module
        wide = (module.width, module.in_features)
        self._a: FloatArray = np.zeros((sizes.num_slots, *(wide[::-1] if self._is_table else wide)), np.float32)
        self._b: FloatArray = np.zeros((sizes.num_slots, sizes.max_rank, module.out_features), np.float32)
        self._ranks = np.zeros(sizes.num_slots, np.int32)
        self._ends = np.array(module.ends, np.int64)
        self.spec = AdapterSpec(
            *(sizes.num_slots, len(module.parts), sizes.max_rank, module.in_features, module.out_features),
            *(address(self._ends), address(self._ranks), address(self._a), address(self._b)),
        )

    @property
    def num_bytes(self) -> int:
        return sum(each.nbytes for each in (self._a, self._b, self._ranks))

    def place(self, slot: int, weights: ModuleWeights | None) -> None:
        self._ranks[slot] = 0 if weights is None else weights.rank
        if weights is not None:
            self._a[slot] = weights.a.T if self._is_table else weights.a
            self._b[slot] = weights.b.T


class CpuAdapters:
    """The slots of all modules, made as a program is built."""

    def __init__(self) -> None:
        self._slots: dict[AdaptedModule, _Slots] = {}

    @property
    def num_bytes(self) -> int:
        return sum(slots.num_bytes for slots in self._slots.values())

    def spec(self, module: AdaptedModule) -> AdapterSpec:
        """Valid as long as this object."""
        return self._slots.setdefault(module, _Slots(module)).spec

    def prepare(self, source: AdapterSource) -> PreparedAdapter:
        return {module: source.weights(module) for module in self._slots}

    def place(self, slot: int, prepared: PreparedAdapter) -> None:
        for module, slots in self._slots.items():
            slots.place(slot, prepared[module])
