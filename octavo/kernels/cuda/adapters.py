"""DeviceAdapters: slots of adapters on a GPU, and the rows of the step that use each.

rows      the slot of each permanent row: a step of decodes reads its slots there
body      the slots of the last step's tokens, and each slot's list of them; `head`: of those whose logits are wanted
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from octavo.kernels.adapters import AdaptedModule, AdapterSource
from octavo.kernels.cuda import sizes
from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.device import StepLimits
from octavo.kernels.triton.linear import adapters
from octavo.kernels.triton.linear.adapter_rows import RowLists, gather_slots
from octavo.kernels.triton.linear.adapters import SlotMatrices


class DeviceAdapters:
    """Owner of the memory. All modules use one buffer of shrunk rows, one after another."""

    def __init__(
        self,
        modules: Iterable[AdaptedModule],
        limits: StepLimits,
        dtype: torch.dtype,
        device: torch.device,
        *,
        is_fixed: bool,
        chained: bool,
    ) -> None:
        self._is_fixed, self._chained = is_fixed, chained
        self._matrices = {module: _matrices(module, dtype, device) for module in modules}
        shapes = sizes.adapter_lists([*self._matrices], limits.max_num_tokens, limits.max_num_seqs)
        made = {name: torch.zeros(shape, dtype=torch.int32, device=device) for name, shape in shapes.items()}
        self.rows = made["rows"].fill_(-1)
        self.body, self.head = (
            RowLists(made[f"{name}_slots"], made[f"{name}_counts"], made[f"{name}_order"]) for name in ("body", "head")
        )
        most_rows = max(limits.max_num_tokens, limits.max_num_seqs)
        shape = sizes.shrunk_rows([*self._matrices], most_rows)
        self._shrunk = torch.empty(shape, dtype=torch.float32, device=device)
        self._lists = [*made.values()]

    @property
    def weight_bytes(self) -> int:
        return sum(each.nbytes for one in self._matrices.values() for each in (one.a, one.b, one.ranks))

    @property
    def work_bytes(self) -> int:
        return self._shrunk.nbytes + sum(each.nbytes for each in self._lists)

    def place(self, slot: int, source: AdapterSource) -> None:
        for module, held in self._matrices.items():
            weights = source.weights(module)
            held.ranks[slot] = 0 if weights is None else weights.rank
            if weights is not None:
                a, b = (torch.from_numpy(each).to(held.a.device) for each in (weights.a, weights.b))
                held.a[slot].copy_(a.T if module.is_table else a)  # rounded on the device
                held.b[slot].copy_(b)

    def begin(self, step: DeviceStep) -> None:
        """Make the lists of a step: from its tokens' slots, or for decodes from its rows'."""
        num_tokens = len(step.input_ids)
        if step.adapters is None:
            given = step.rows, step.seq_lens, self.rows, self.body.slots
            gather_slots(*given, chained=self._chained)
        else:
            self.body.slots[:num_tokens].copy_(step.adapters)
        self.body.make(num_tokens, chained=self._chained)

    def begin_head(self, indices: torch.Tensor) -> None:
        """Make the lists of tokens of the last step, by their index in it."""
        torch.index_select(self.body.slots, 0, indices, out=self.head.slots[: len(indices)])
        self.head.make(len(indices), chained=self._chained)

    def add(self, module: AdaptedModule, lists: RowLists, x: torch.Tensor, y: torch.Tensor) -> None:
        held, tiling = self._matrices[module], adapters.choose_tiling(len(x), is_fixed=self._is_fixed)
        adapters.shrink(x, held, lists, self._shrunk, tiling, chained=self._chained)
        adapters.expand(self._shrunk, held, lists, y, tiling, chained=self._chained)

    def add_table(self, module: AdaptedModule, step: DeviceStep, y: torch.Tensor, offset: int) -> None:
        held, tiling = self._matrices[module], adapters.choose_tiling(len(y), is_fixed=self._is_fixed)
        slots = self.body.slots
        adapters.shrink_table(step.input_ids, held, slots, self._shrunk, offset, chained=self._chained)
        whole = adapters.Tiling(tiling.rows, tiling.lanes, split=1)
        adapters.expand(self._shrunk, held, self.body, y, whole, chained=self._chained)


def _matrices(module: AdaptedModule, dtype: torch.dtype, device: torch.device) -> SlotMatrices:
    num_slots, wide = module.sizes.num_slots, (module.width, module.in_features)
    a = torch.zeros((num_slots, *(wide[::-1] if module.is_table else wide)), dtype=dtype, device=device)
    b = torch.zeros((num_slots, module.out_features, module.sizes.max_rank), dtype=dtype, device=device)
    return SlotMatrices(a, b, torch.zeros(num_slots, dtype=torch.int32, device=device), module.ends)
