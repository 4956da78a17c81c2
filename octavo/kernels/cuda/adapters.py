"""DeviceAdapters: slots of adapters on a GPU, and the rows of the step that use each.

rows      the slot of each permanent row: a step of decodes reads its slots there
body      the slots of the last step's tokens, and each slot's list of them; `head`: of those whose logits are wanted
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from octavo.kernels.adapters import AdaptedModule
from octavo.kernels.cuda import sizes
from octavo.kernels.cuda.adapter_memory import AdapterMemory
from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.device import StepLimits
from octavo.kernels.ops import Activation
from octavo.kernels.triton.linear import adapters
from octavo.kernels.triton.linear.adapter_rows import RowLists, gather_slots
from octavo.kernels.triton.linear.few_adapted_rows import expand_rows, shrink_rows


class DeviceAdapters:
    """memory: of the slots. All modules use one buffer of shrunk rows, one after another."""

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
        self.memory = AdapterMemory(modules, dtype, device)
        self._matrices = self.memory.matrices
        shapes = sizes.adapter_lists([*self._matrices], limits.max_num_tokens, limits.max_num_seqs)
        made = {name: torch.zeros(shape, dtype=torch.int32, device=device) for name, shape in shapes.items()}
        self.rows = made["rows"].fill_(-1)
        self.body, self.head = (
            RowLists(*(made[f"{name}_{what}"] for what in ("slots", "counts", "order", "tiles")))
            for name in ("body", "head")
        )
        most_rows = max(limits.max_num_tokens, limits.max_num_seqs)
        shape = sizes.shrunk_rows([*self._matrices], most_rows)
        self._shrunk = torch.empty(shape, dtype=torch.float32, device=device)
        self._lists = [*made.values()]

    @property
    def weight_bytes(self) -> int:
        return self.memory.num_bytes

    @property
    def work_bytes(self) -> int:
        return self._shrunk.nbytes + sum(each.nbytes for each in self._lists)

    def begin(self, step: DeviceStep) -> None:
        """Make the lists of a step: from its tokens' slots, or for decodes from its rows'."""
        num_tokens = len(step.input_ids)
        if step.adapters is None:
            given = step.rows, step.seq_lens, self.rows, self.body.slots
            gather_slots(*given, chained=self._chained)
        else:
            self.body.slots[:num_tokens].copy_(step.adapters)
        self._make(self.body, num_tokens)

    def begin_head(self, indices: torch.Tensor) -> None:
        """Make the lists of tokens of the last step, by their index in it."""
        torch.index_select(self.body.slots, 0, indices, out=self.head.slots[: len(indices)])
        self._make(self.head, len(indices))

    def rows_of(self, step: DeviceStep | None) -> RowLists:
        """In a head, which has no step, the rows are those whose logits are wanted."""
        return self.head if step is None else self.body

    def add(
        self,
        module: AdaptedModule,
        lists: RowLists,
        x: torch.Tensor,
        y: torch.Tensor,
        gated: tuple[Activation, torch.Tensor] | None = None,
    ) -> None:
        """y += x A^T B^T. gated: as `adapters.expand` takes it. The kernel before made y, and x was there before it."""
        held, chained = self._matrices[module], self._chained
        if self._are_few(len(x)):
            shrink_rows(x, held, lists.slots, self._shrunk, chained=chained)
            parts = sizes.shrink_parts(*x.shape)
            expand_rows(self._shrunk, parts, held, lists.slots, y, gated=gated, chained=chained)
        else:
            tiling = adapters.choose_tiling(len(x), is_fixed=self._is_fixed)
            adapters.shrink(x, held, lists, self._shrunk, tiling, chained=chained)
            adapters.expand(self._shrunk, held, lists, y, tiling, gated=gated, chained=chained)

    def add_table(self, module: AdaptedModule, step: DeviceStep, y: torch.Tensor, offset: int) -> None:
        held, chained, slots = self._matrices[module], self._chained, self.body.slots
        adapters.shrink_table(step.input_ids, held, slots, self._shrunk, offset, chained=chained)
        if self._are_few(len(y)):
            expand_rows(self._shrunk, 1, held, slots, y, chained=chained)
        else:
            tile = adapters.choose_tiling(len(y), is_fixed=self._is_fixed).rows
            adapters.expand(self._shrunk, held, self.body, y, adapters.Tiling(tile, split=1), chained=chained)

    def _make(self, lists: RowLists, num_rows: int) -> None:
        if not self._are_few(num_rows):
            tile = adapters.choose_tiling(num_rows, is_fixed=self._is_fixed).rows
            lists.make(num_rows, tile, chained=self._chained)

    def _are_few(self, num_rows: int) -> bool:
        return num_rows <= sizes.FEW_ADAPTED_ROWS and not self._is_fixed
