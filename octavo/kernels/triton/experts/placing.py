"""How the router finds the slots of experts that change places, and which rows it counts: those that are no padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.distributed.placed_experts import PlacedExperts
from octavo.kernels.cuda.step import DECODES, DeviceStep


@dataclass(frozen=True, slots=True, eq=False)
class Placing:
    """loads [E], places [E, width]: see `PlacedExperts`. Row m is counted if it is the first, or real[m] > 0; or, with
    ends, if it is before the one number that real has."""

    loads: torch.Tensor
    places: torch.Tensor
    real: torch.Tensor
    ends: bool = False


class Placings:
    """Of all layers. head: the indices in the step of the rows whose logits are wanted, set before they are computed;
    padding has index 0, which only the first of them may have."""

    def __init__(self, placed: PlacedExperts) -> None:
        self.placed = placed
        self.head = torch.empty(0, dtype=torch.int32, device=placed.loads.device)

    def of(self, name: str, step: DeviceStep | None) -> Placing:
        arrays = self.placed.arrays(name)
        if step is None:
            return Placing(*arrays, self.head)
        if step.kind == DECODES:
            return Placing(*arrays, step.seq_lens)
        return Placing(*arrays, step.query_start_loc[-1:], ends=True)
