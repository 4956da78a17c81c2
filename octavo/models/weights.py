"""Weights: a checkpoint seen through its family's table of tensors.

A family states once which tensors it needs and with which shapes. Everything else reads that table: the
loader to name what is missing or misshapen, `octavo plan` to price a model, and the family's own builder,
which asks by name and gets a bias or a head norm exactly where the table lists one.

Names are those of Hugging Face's causal-language-model classes, whatever file the tensors come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from octavo.kernels.parameters import Linear, Parameter, Shape
from octavo.kernels.tensor import StoredTensor, at_hand, from_array
from octavo.layers.norm import LayerNorm, RMSNorm
from octavo.quantization.registry import DENSE, scheme_of

TensorTable = dict[str, Shape]


class TensorSource(Protocol):
    """What a model needs of a checkpoint."""

    def take(self, name: str, shape: Shape) -> StoredTensor:
        """The tensor of that name, not read yet. Raises ModelLoadError if it is missing or shaped otherwise."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters under one prefix."""

    source: TensorSource
    table: Mapping[str, Shape]
    prefix: str = ""

    def under(self, prefix: str) -> Weights:
        return replace(self, prefix=f"{self.prefix}{prefix}.")

    def lists(self, name: str) -> bool:
        return self.prefix + name in self.table

    def parameter(self, name: str) -> Parameter:
        full = self.prefix + name
        assert full in self.table, f"{full} is not in the family's table of tensors"
        shape = self.table[full]
        stored = self.source.take(full, shape)
        return Parameter(full, shape, scheme_of(stored.dtype), (stored,))

    def optional(self, name: str) -> Parameter | None:
        return self.parameter(name) if self.lists(name) else None

    def rms_norm(self, name: str, eps: float) -> RMSNorm:
        return RMSNorm(self.parameter(f"{name}.weight"), eps)

    def layer_norm(self, name: str, eps: float, size: int) -> LayerNorm:
        """Of that many columns. Where the table lists no weight, it is one."""
        weight = self.optional(f"{name}.weight")
        if weight is None:
            ones = at_hand(from_array(np.ones(size, np.float32)))
            weight = Parameter(f"{self.prefix}{name}.weight", ones.shape, DENSE, (ones,))
        return LayerNorm(weight, self.optional(f"{name}.bias"), eps)

    def linear(self, *names: str) -> Linear:
        """The weights `name.weight`, stacked, with their biases where the table lists them."""
        biases = tuple(self.parameter(f"{name}.bias") for name in names if self.lists(f"{name}.bias"))
        assert len(biases) in (0, len(names)), f"some of {names} have a bias and some have none"
        return Linear(tuple(self.parameter(f"{name}.weight") for name in names), biases)

    def head(self, name: str, embedding: Parameter) -> Linear:
        """The output projection. Where the table lists none it is the embedding itself, which a backend holds once."""
        return self.linear(name) if self.lists(f"{name}.weight") else Linear((embedding,))


def with_biases(table: TensorTable, *names: str) -> TensorTable:
    """The table with a bias for each named weight, as long as the weight has rows; for every weight, if none is
    named."""
    chosen = names or tuple(name.removesuffix(".weight") for name in table)
    return table | {f"{name}.bias": table[f"{name}.weight"][:1] for name in chosen}
