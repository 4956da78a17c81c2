"""ReferenceDevice: every op in plain torch, run as soon as it is called.

It is the executable specification, written to be read rather than to be fast. Other devices are tested against it.
torch is imported when a model is loaded, not with this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

from octavo.kernels.device import StepLimits
from octavo.kernels.host_device import HostDevice, allocate_pool, host_rows
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.kernels.ledger import Contents, Entry, Ledger, Measured, row_bytes
from octavo.kernels.mixture import Mixture
from octavo.kernels.model import Model
from octavo.kernels.placed_experts import placed_experts
from octavo.kernels.program.model_recording import ModelRecording
from octavo.kernels.program.recorder import See, printer, record_model
from octavo.observe.machine import num_cores

if TYPE_CHECKING:
    import torch

    from octavo.distributed.collectives import Collectives
    from octavo.distributed.placed_experts import PlacedExperts
    from octavo.kernels.reference.adapters import ReferenceAdapters
    from octavo.kernels.reference.compiled import ReferenceModel
    from octavo.kernels.reference.weights import ReferenceWeights


class ReferenceDevice(HostDevice):
    """Implements `octavo.kernels.device.Device`."""

    name = "reference"
    place = "the CPU"

    def __init__(self, num_ranks: int = 1, *, traces_ops: bool = False) -> None:
        self.num_sharing = num_ranks
        self._see = printer(lambda x: float(x.norm())) if traces_ops else None

    def why_not(self) -> str | None:
        if find_spec("torch") is None:
            return "the reference backend computes with torch, which is not installed: pip install 'octavo[reference]'"
        return None

    def ledger(self, model: ModelRecording, kv: KVLayout, limits: StepLimits, dtype: KVDType) -> Ledger:
        """torch allocates activations op by op; what lives at once is what a program would keep in buffers."""
        contents = Contents.of((model.body, model.head))
        parts = {part.name: part for linear in contents.linears.values() for part in (*linear.parts, *linear.biases)}
        ups = {name: latent.up for name, latent in contents.latents.items()}
        held = contents.tables | contents.vectors | parts | ups
        weights = 4 * sum(prod(part.shape) for part in held.values()) + contents.rotary_bytes(limits.max_model_len)
        activations = row_bytes(model.body) * limits.max_num_tokens + row_bytes(model.head) * limits.max_num_seqs
        return Ledger(
            (
                Entry("weights", weights, f"{len(held):,} tensors in float32"),
                *contents.adapter_entries(4),
                *contents.moving_entries(_expert_bytes),
                Entry("activations", activations, "an estimate"),
                host_rows(kv, limits),
            )
        )

    def load(
        self, model: Model, kv: KVLayout, limits: StepLimits, dtype: KVDType, ranks: Collectives | None = None
    ) -> ReferenceLoaded:
        from octavo.kernels.reference.adapters import ReferenceAdapters
        from octavo.kernels.reference.weights import ReferenceWeights

        if self.num_sharing > 1:
            import torch

            torch.set_num_threads(max(1, num_cores() // self.num_sharing))
        body, heads = record_model(model)
        read = (parameter for recording in (body, *heads.values()) for parameter in recording.parameters())
        contents = Contents.of((body, *heads.values()))
        weights = ReferenceWeights(read, placed_experts(contents.mixtures.values()))
        for layer in contents.mixtures.values():
            weights.hold(layer)
        if weights.placed is not None and ranks is not None:
            weights.placed.join(ranks)
        adapters = ReferenceAdapters(contents.adapted.values())
        return ReferenceLoaded(model, kv, limits, weights, adapters, self._see, ranks)


def _expert_bytes(layer: Mixture) -> int:
    return 4 * sum(prod(part.shape) for linear in next(layer.pairs) for part in (*linear.parts, *linear.biases))


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceLoaded:
    """Implements `octavo.kernels.device.Loaded`."""

    model: Model
    kv: KVLayout
    limits: StepLimits
    weights: ReferenceWeights
    adapters: ReferenceAdapters
    see: See | None = None
    ranks: Collectives | None = None

    @property
    def parameters(self) -> Mapping[str, torch.Tensor]:
        return MappingProxyType(self.weights.parameters)

    def held(self) -> Measured:
        found: Measured = {"weights": self.weights.num_bytes + self.adapters.num_bytes}
        return found if self.placed is None else {**found, "workspace": self.placed.num_bytes}

    @property
    def placed(self) -> PlacedExperts | None:
        return self.weights.placed

    def bind(self, num_blocks: int) -> ReferenceModel:
        from octavo.kernels.reference.compiled import ReferenceModel

        kv = replace(self.kv, num_blocks=num_blocks)
        given = (self.model, kv, allocate_pool(kv), self.limits, self.weights)
        return ReferenceModel(*given, self.see, self.ranks, self.adapters)
