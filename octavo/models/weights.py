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

from octavo.kernels.ops import FloatArray, LinearWeight
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.tensor import HostTensor
from octavo.layers.norm import LayerNorm, RMSNorm

Shape = tuple[int, ...]
TensorTable = dict[str, Shape]


class TensorSource(Protocol):
    """What a model needs of a checkpoint."""

    def take(self, name: str, shape: Shape) -> HostTensor:
        """The tensor of that name. Raises ModelLoadError if it is missing or shaped otherwise."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors under one prefix."""

    source: TensorSource
    table: Mapping[str, Shape]
    prefix: str = ""

    def under(self, prefix: str) -> Weights:
        return replace(self, prefix=f"{self.prefix}{prefix}.")

    def lists(self, name: str) -> bool:
        return self.prefix + name in self.table

    def tensor(self, name: str) -> HostTensor:
        full = self.prefix + name
        assert full in self.table, f"{full} is not in the family's table of tensors"
        return self.source.take(full, self.table[full])

    def vector(self, name: str) -> FloatArray:
        """A norm weight or a bias, in float32."""
        return dequantize(self.tensor(name))

    def rms_norm(self, name: str, eps: float) -> RMSNorm:
        return RMSNorm(self.vector(f"{name}.weight"), eps)

    def layer_norm(self, name: str, eps: float, size: int) -> LayerNorm:
        """Of that many columns. Where the table lists no weight, it is one."""
        weight = self.optional_vector(f"{name}.weight")
        return LayerNorm(
            np.ones(size, np.float32) if weight is None else weight, self.optional_vector(f"{name}.bias"), eps
        )

    def optional_vector(self, name: str) -> FloatArray | None:
        return self.vector(name) if self.lists(name) else None

    def linear(self, *names: str) -> LinearWeight:
        """One weight of the parts `name.weight`, stacked, with their biases where the table lists them."""
        biases = [self.vector(f"{name}.bias") for name in names if self.lists(f"{name}.bias")]
        assert len(biases) in (0, len(names)), f"some of {names} have a bias and some have none"
        parts = tuple(self.tensor(f"{name}.weight") for name in names)
        return LinearWeight(parts, np.concatenate(biases) if biases else None)

    def head(self, name: str, embedding: HostTensor) -> LinearWeight:
        """The output projection. Where the table lists none it is the embedding itself, the same object, so that
        a backend holds it once."""
        return self.linear(name) if self.lists(f"{name}.weight") else LinearWeight((embedding,))


def with_biases(table: TensorTable, *names: str) -> TensorTable:
    """The table with a bias for each named weight, as long as the weight has rows; for every weight, if none is
    named."""
    chosen = names or tuple(name.removesuffix(".weight") for name in table)
    return table | {f"{name}.bias": table[f"{name}.weight"][:1] for name in chosen}
