"""The layers of a model whose experts change places between ranks, on a device of torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from octavo.kernels.mixture import Mixture

if TYPE_CHECKING:
    from octavo.distributed.placed_experts import PlacedExperts


def placed_experts(layers: Iterable[Mixture], device: Any = "cpu") -> PlacedExperts | None:
    """None: all experts stay where they are."""
    own = [(layer, layer.slots) for layer in layers if layer.slots is not None]
    if not own:
        return None
    from octavo.distributed.placed_experts import PlacedExperts  # ranks have torch

    (one, slots), names = own[0], [layer.name for layer, _ in own]
    return PlacedExperts(names, one.routing.num_experts, slots.num_slots, slots.most_copies, device)
