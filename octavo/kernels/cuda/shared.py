"""Shared: what all programs of a model on a GPU have in common: weights, memory, and choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.kernels.attention import ModelAttention
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.weights import DeviceWeights
from octavo.kernels.cuda_cpp.expert_format import rows_for, why_not, why_not_wide
from octavo.kernels.mixture import Mixture
from octavo.kernels.parameters import Linear
from octavo.kernels.program.recorder import See
from octavo.kernels.triton.attention.memory import AttentionMemory
from octavo.kernels.triton.experts.placing import Placings
from octavo.kernels.triton.experts.room import Room

if TYPE_CHECKING:
    from octavo.kernels.cuda.adapters import DeviceAdapters
    from octavo.kernels.cuda.quantized_product import Product
    from octavo.kernels.cuda.quantized_products import QuantizedProducts
    from octavo.kernels.cuda.rank_sums import RankSums


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """What all programs of a model share."""

    weights: DeviceWeights
    gpu: GPU
    memory: AttentionMemory
    attention: ModelAttention
    see: See | None  # None: a program runs as a whole
    sums: RankSums | None = None  # None: the model is whole
    is_fixed: bool = False  # all programs launch the same kernels, whose sums do not depend on the number of rows
    room: Room | None = None  # None: no layer has experts
    quantized: QuantizedProducts | None = None  # None: all matrices are dense
    adapters: DeviceAdapters | None = None  # None: the model has no slots for any
    placings: Placings | None = None  # None: experts stay where they are

    def quantized_product(self, weight: Linear) -> Product | None:
        return None if self.quantized is None else self.quantized.product(weight, self.weights)

    def why_not_few(self, layer: Mixture) -> str | None:
        """Why the kernels for few rows do not take a mixture."""
        return why_not(layer, self.memory.dtype, self.gpu, is_fixed=self.is_fixed)

    def why_not_wide(self, layer: Mixture) -> str | None:
        """Why the kernel for experts of many rows each does not take a mixture."""
        return why_not_wide(layer, self.memory.dtype, self.gpu, is_fixed=self.is_fixed)

    def few_rows(self, layer: Mixture) -> range:
        """The numbers of rows that the kernels for few rows would be for."""
        return rows_for(layer, is_wide=self.why_not_wide(layer) is None)

    def routes_norm(self, num_rows: int, layer: Mixture) -> bool:
        """Whether a mixture of so many rows, or one of more than one, takes the norm before it."""
        return num_rows in self.few_rows(layer) and self.see is None and self.why_not_few(layer) is None

    @property
    def fuses_sums(self) -> bool:
        """Whether a sum of all ranks and the norm after it are one instruction."""
        return self.sums is not None and self.see is None and not self.is_fixed
