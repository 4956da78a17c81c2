"""Adapters of a model's matrices: y = x W^T + x A^T B^T, with an A and a B of low rank for each token.

    slot     0          1          2              a step's tokens     0  0  2 -1  1  1  1      -1: no adapter
    A  [P*R, in]   ...                            h = x A^T           a few numbers a token: shrink
    B  [out, R]    ...                            y += h B^T          expand

A model has a fixed number of slots, each with room for matrices of the largest rank. So loading an adapter moves no
memory, and captured graphs stay valid. A module is a product, of one matrix or several stacked ones (its parts), each
of which has an A and a B of its own; an embedding is one, too: its A has a column for each token.

The scale of an adapter is in its B. What a smaller rank leaves is zero. Such matrices are LoRA (Hu et al., 2021); many
adapters in one batch are Punica's idea (Chen et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.parameters import Shape

FloatArray = NDArray[np.float32]
Slices = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class AdapterSizes:
    """R is max_rank."""

    num_slots: int
    max_rank: int


@dataclass(frozen=True, slots=True)
class AdaptedPart:
    """One matrix. name: as adapters call it: model.layers.3.mlp.down_proj. shape: [out, in] of all ranks together.
    outputs, inputs: those of this rank; None: all."""

    name: str
    shape: Shape
    outputs: Slices | None = None
    inputs: Slices | None = None

    @property
    def out_features(self) -> int:
        return self.shape[0] if self.outputs is None else sum(each.stop - each.start for each in self.outputs)

    @property
    def in_features(self) -> int:
        return self.shape[1] if self.inputs is None else sum(each.stop - each.start for each in self.inputs)


@dataclass(frozen=True, slots=True)
class AdapterTarget:
    """A matrix of the whole model that an adapter may change. shape: [out, in]; the inputs of a table are tokens."""

    name: str
    shape: Shape
    is_table: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedModule:
    """P parts that read the same inputs, stacked along the output. is_table: an embedding, whose inputs are tokens."""

    parts: tuple[AdaptedPart, ...]
    sizes: AdapterSizes
    is_table: bool = False

    @property
    def name(self) -> str:
        whole, *others = (part.name for part in self.parts)
        return "+".join([whole, *(name.rsplit(".", 1)[-1] for name in others)])

    @property
    def in_features(self) -> int:
        return self.parts[0].in_features

    @property
    def out_features(self) -> int:
        return sum(part.out_features for part in self.parts)

    @property
    def width(self) -> int:
        """Numbers that a token is shrunk to: P * R."""
        return len(self.parts) * self.sizes.max_rank

    @property
    def ends(self) -> tuple[int, ...]:
        """Where each part's outputs end."""
        return tuple(np.cumsum([part.out_features for part in self.parts]).tolist())

    @property
    def has_gates(self) -> bool:
        """Whether its outputs can be gates, and then as many that they multiply."""
        return len(self.ends) == 1 or (len(self.ends) == 2 and 2 * self.ends[0] == self.ends[1])

    def num_bytes(self, element_bytes: int) -> int:
        """Of all slots, with the ranks that they have."""
        numbers = self.width * self.in_features + self.out_features * self.sizes.max_rank
        return self.sizes.num_slots * (numbers * element_bytes + 4)


@dataclass(frozen=True, slots=True, eq=False)
class ModuleWeights:
    """What one slot holds for a module. a: [P * R, in], b: [out, R], both with zeros beyond `rank`, which is the
    largest of its parts'."""

    rank: int
    a: FloatArray
    b: FloatArray


class AdapterSource(Protocol):
    """An adapter whose numbers can be read."""

    def weights(self, module: AdaptedModule) -> ModuleWeights | None:
        """None: it leaves the module as it is."""
