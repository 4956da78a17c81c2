"""Room: the memory between the launches of a mixture. All layers and passes of a model share it, one after another.

A pair is a row and one of its chosen experts; pair row * K + place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from octavo.kernels.cuda.sizes import mixture_lists, mixture_pairs
from octavo.kernels.mixture import Mixture


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """ids, weights: by pair. counts: pairs of each expert; zero between mixtures. order [experts, max_rows]: each
    expert's pairs. gated: the activations of each pair, results: the pair's result, in the model's type, flat."""

    max_rows: int
    logits: torch.Tensor
    arrived: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor
    order: torch.Tensor
    gated: torch.Tensor
    results: torch.Tensor

    @classmethod
    def of(cls, mixtures: Iterable[Mixture], max_rows: int, dtype: torch.dtype, device: torch.device) -> Room | None:
        """Room for the largest of the mixtures; None if there are none."""
        layers = list(mixtures)
        if not layers:
            return None
        lists = {
            name: torch.zeros(shape, dtype=torch.int32, device=device)
            for name, shape in mixture_lists(layers, max_rows).items()
        }
        pairs = {
            name: torch.empty(count, dtype=dtype, device=device)
            for name, count in mixture_pairs(layers, max_rows).items()
        }
        floats = {name: lists.pop(name).view(torch.float32) for name in ("logits", "weights")}
        return cls(max_rows, **floats, **lists, **pairs)

    @property
    def num_bytes(self) -> int:
        lists = (self.logits, self.arrived, self.ids, self.weights, self.counts, self.order)
        return sum(each.nbytes for each in (*lists, self.gated, self.results))
