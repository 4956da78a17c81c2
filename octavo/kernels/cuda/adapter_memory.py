"""AdapterMemory: the numbers of a GPU's slots of adapters, each slot in one piece.

slot 0   | A of module 0 | B of module 0 | A of module 1 | ...        an adapter is prepared on the host in this form,
slot 1   | A of module 0 | ...                                        so that one copy fills a slot
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from octavo.kernels.adapters import AdaptedModule, AdapterSource
from octavo.kernels.cuda.sizes import aligned
from octavo.kernels.triton.linear.slot_matrices import SlotMatrices


@dataclass(frozen=True, slots=True, eq=False)
class PreparedAdapter:
    """numbers: as in a slot, in memory of the host that a copy to the device need not wait for. ranks: by module."""

    numbers: torch.Tensor
    ranks: list[int]


class AdapterMemory:
    """matrices: of each module, in all slots."""

    def __init__(self, modules: Iterable[AdaptedModule], dtype: torch.dtype, device: torch.device) -> None:
        self._modules = list(modules)
        num_slots = self._modules[0].sizes.num_slots
        width = sum(aligned(a) + aligned(b) for a, b in map(_sizes, self._modules))
        self._slots = torch.zeros((num_slots, width), dtype=dtype, device=device)
        self._ranks = torch.zeros((len(self._modules), num_slots), dtype=torch.int32, device=device)
        self._host_ranks = torch.zeros_like(self._ranks, device="cpu")
        self.matrices = {
            module: SlotMatrices(a, b, ranks, module.ends)
            for module, (a, b), ranks in zip(self._modules, self._cut(self._slots), self._ranks, strict=True)
        }

    @property
    def num_bytes(self) -> int:
        return self._slots.nbytes + self._ranks.nbytes

    def prepare(self, source: AdapterSource) -> PreparedAdapter:
        is_cuda = self._slots.is_cuda
        with torch.cuda.device(self._slots.device) if is_cuda else nullcontext():
            numbers = torch.zeros(self._slots.shape[1], dtype=self._slots.dtype, pin_memory=is_cuda)
        ranks = []
        for module, (a, b) in zip(self._modules, self._cut(numbers[None]), strict=True):
            weights = source.weights(module)
            ranks.append(0 if weights is None else weights.rank)
            if weights is not None:
                a[0].copy_(torch.from_numpy(weights.a.T if module.is_table else weights.a))
                b[0].copy_(torch.from_numpy(weights.b))
        return PreparedAdapter(numbers, ranks)

    def place(self, slot: int, prepared: PreparedAdapter) -> None:
        """For the kernels launched from now on. Nothing waits."""
        self._slots[slot].copy_(prepared.numbers, non_blocking=True)
        self._host_ranks[:, slot] = torch.tensor(prepared.ranks, dtype=torch.int32)
        ranks = self._host_ranks.pin_memory() if self._ranks.is_cuda else self._host_ranks
        self._ranks.copy_(ranks, non_blocking=True)

    def _cut(self, numbers: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """A and B of each module, of so many adapters."""
        first = 0
        for module in self._modules:
            a, b = _sizes(module)
            wide, second = (module.width, module.in_features), first + aligned(a)
            yield (
                numbers[:, first : first + a].view(-1, *(wide[::-1] if module.is_table else wide)),
                numbers[:, second : second + b].view(-1, module.out_features, module.sizes.max_rank),
            )
            first = second + aligned(b)


def _sizes(module: AdaptedModule) -> tuple[int, int]:
    return module.width * module.in_features, module.out_features * module.sizes.max_rank
