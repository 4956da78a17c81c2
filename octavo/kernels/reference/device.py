"""ReferenceDevice: every op in plain torch, run as soon as it is called.

It is the executable specification, written to be read rather than to be fast. Other devices are tested against it.
torch is imported when a model is loaded, not with this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING

from octavo.kernels.device import HOST_SIZES, StepLimits, StepSizes, allocate_pool, host_dtypes, host_free_bytes
from octavo.kernels.kv_layout import KVDType, KVLayout
from octavo.kernels.ops import Model
from octavo.kernels.program.recorder import See, printer, record_model

if TYPE_CHECKING:
    import torch

    from octavo.kernels.reference.compiled import ReferenceModel
    from octavo.kernels.reference.weights import ReferenceWeights


class ReferenceDevice:
    """Implements `octavo.kernels.device.Device`."""

    name = "reference"
    is_asynchronous = draws_weights = sizes_cache_last = False
    dtypes = staticmethod(host_dtypes)
    free_bytes = staticmethod(host_free_bytes)

    def __init__(self, *, traces_ops: bool = False) -> None:
        self._see = printer(lambda x: float(x.norm())) if traces_ops else None

    def why_not(self) -> str | None:
        if find_spec("torch") is None:
            return "the reference backend computes with torch, which is not installed: pip install 'octavo[reference]'"
        return None

    def default_sizes(self) -> StepSizes:
        return HOST_SIZES

    def label(self, dtype: KVDType) -> None:
        return None

    def compile_ahead(self, settings: object) -> None:
        return None

    def load(self, model: Model, kv: KVLayout, limits: StepLimits, dtype: KVDType) -> ReferenceLoaded:
        from octavo.kernels.reference.weights import ReferenceWeights

        body, heads = record_model(model)
        read = (parameter for recording in (body, *heads.values()) for parameter in recording.parameters())
        return ReferenceLoaded(model, kv, limits, ReferenceWeights(read), self._see)


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceLoaded:
    """Implements `octavo.kernels.device.Loaded`."""

    model: Model
    kv: KVLayout
    limits: StepLimits
    weights: ReferenceWeights
    see: See | None = None

    @property
    def parameters(self) -> Mapping[str, torch.Tensor]:
        return MappingProxyType(self.weights.parameters)

    def bind(self, num_blocks: int) -> ReferenceModel:
        from octavo.kernels.reference.compiled import ReferenceModel

        kv = replace(self.kv, num_blocks=num_blocks)
        return ReferenceModel(self.model, kv, allocate_pool(kv), self.limits, self.weights, self.see)
