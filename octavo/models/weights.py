"""Weights: a checkpoint's tensors as parameters, by its family's table of names and shapes.

The loader uses the table to report missing or misshapen tensors. The family's builder finds tensors by name in it, and
gets a bias or a head norm exactly if the table lists one. Names are those of Hugging Face's causal-language-model
classes, whatever file the tensors come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.mixture import ExpertSlots
from octavo.kernels.ops import Activation
from octavo.kernels.parameters import REPLICATED, Linear, Parameter, Scheme, Shape, Shard
from octavo.kernels.tensor import BLOCK_FORMATS, StoredTensor, at_hand, from_array
from octavo.layers.blocks import GatedMLP, LayerNorm, PlainMLP, RMSNorm, SelfAttention
from octavo.models.architecture import Architecture
from octavo.models.splits import expert_slots, granule, own_experts, own_heads, own_slots
from octavo.quantization.described import Quantization
from octavo.quantization.registry import DENSE, scheme_of

TensorTable = dict[str, Shape]


class TensorSource(Protocol):
    """The part of a checkpoint that a model uses."""

    def take(self, name: str, shape: Shape) -> StoredTensor:
        """The tensor of that name, not read yet. Raises ModelLoadError if it is missing or has another shape."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters under one prefix, or a rank's parts of them. divides_experts: among the ranks, each whole.
    num_redundant: of a layer's experts, which then change places; None: they stay where they are."""

    source: TensorSource
    table: Mapping[str, Shape]
    quantization: Quantization | None = None
    rank: int = 0
    num_ranks: int = 1
    divides_experts: bool = False
    num_redundant: int | None = None
    prefix: str = ""

    def under(self, prefix: str) -> Weights:
        return replace(self, prefix=f"{self.prefix}{prefix}.")

    def lists(self, name: str) -> bool:
        return self.prefix + name in self.table

    def of_experts(self, num_experts: int) -> tuple[Weights, int, Sequence[int], ExpertSlots | None]:
        """Where the matrices of a layer's experts are; which of these experts this rank has, and the number of the
        first or of its slot; and the slots, if experts change places."""
        if not self.divides_experts:
            return self, 0, range(num_experts), None
        whole = replace(self, rank=0, num_ranks=1)
        if self.num_redundant is None:
            own = own_experts(num_experts, self.rank, self.num_ranks)
            return whole, own.start, own, None
        slots = expert_slots(num_experts, self.num_redundant, self.num_ranks)
        return whole, *own_slots(slots, num_experts, self.rank, self.num_ranks), slots

    def parameter(self, name: str, shard: Shard = REPLICATED) -> Parameter:
        full = self.prefix + name
        assert full in self.table, f"{full} is not in the family's table of tensors"
        shape = self.table[full]
        scheme = scheme_in(self.quantization, full, shape)
        stored = {full: shape} if scheme is None else scheme.tensors(full, shape)
        sources = tuple(self.source.take(*tensor) for tensor in stored.items())
        whole = Parameter(full, shape, scheme or scheme_of(sources[0]), sources, shard)
        return whole.part(self.rank, self.num_ranks)

    def optional(self, name: str, shard: Shard = REPLICATED) -> Parameter | None:
        return self.parameter(name, shard) if self.lists(name) else None

    def rms_norm(self, name: str, eps: float) -> RMSNorm:
        return RMSNorm(self.parameter(f"{name}.weight"), eps)

    def layer_norm(self, name: str, eps: float, size: int) -> LayerNorm:
        """size: the number of columns. If the table lists no weight, the weight is one."""
        weight = self.optional(f"{name}.weight")
        if weight is None:
            ones = at_hand(from_array(np.ones(size, np.float32)))
            weight = Parameter(f"{self.prefix}{name}.weight", ones.shape, DENSE, (ones,))
        return LayerNorm(weight, self.optional(f"{name}.bias"), eps)

    def embedding(self, name: str) -> Parameter:
        """A table whose rows are split over ranks."""
        return self.parameter(f"{name}.weight", Shard.columns(self._shape(name)[0]))

    def head(self, name: str, embedding: Parameter) -> Linear:
        """The LM head. If the table lists none, it is the embedding, which a backend stores once."""
        return self.column(name) if self.lists(f"{name}.weight") else Linear((embedding,))

    def attention(self, layer: AttentionLayer, out: str, *qkv: str) -> SelfAttention:
        """qkv: the names of the three projections, or of one matrix that holds all three. layer: of all ranks."""
        queries, keys = layer.num_heads, layer.num_kv_heads
        held = [(queries, keys, keys)] if len(qkv) == 1 else [(queries,), (keys,), (keys,)]
        shards = [Shard.heads(queries, *segments) for segments in held]
        own = own_heads(layer, self.num_ranks, self.block_len(out))
        return SelfAttention(self._linear(dict(zip(qkv, shards, strict=True))), self.row(out, queries), own)

    def gated_mlp(self, gate_up: Sequence[str], down: str, activation: Activation) -> GatedMLP:
        return GatedMLP(self.column(*gate_up, num_segments=2, read_by=down), self.row(down), activation)

    def plain_mlp(self, up: str, down: str, activation: Activation) -> PlainMLP:
        return PlainMLP(self.column(up, read_by=down), self.row(down), activation)

    def column(self, *names: str, num_segments: int = 1, read_by: str = "") -> Linear:
        """Outputs are split over ranks. num_segments: of all matrices together. read_by: the matrix whose inputs they
        become, which is split alike."""
        each, run = num_segments // len(names) or 1, self._granule(read_by) if read_by else 1
        return self._linear({name: Shard.columns(self._shape(name)[0], each, run) for name in names})

    def row(self, name: str, units: int | None = None) -> Linear:
        """Inputs are split over ranks, in that many units; by default between blocks of numbers."""
        return self._linear({name: Shard.rows(units or self._shape(name)[1] // self._granule(name))})

    def by_heads(self, name: str, num_heads: int) -> Linear:
        """Outputs are split over ranks, as whole heads."""
        return self._linear({name: Shard.heads(num_heads, num_heads)})

    def replicated(self, name: str) -> Linear:
        return self._linear({name: REPLICATED})

    def _linear(self, shards: Mapping[str, Shard]) -> Linear:
        """The weights `name.weight`, stacked, with their biases if the table lists them."""
        biased = {name: shard for name, shard in shards.items() if self.lists(f"{name}.bias")}
        assert len(biased) in (0, len(shards)), f"some of {list(shards)} have a bias and some have none"
        if self.rank:  # the ranks' products are added up, and a bias is added once
            biased = {name: shard for name, shard in biased.items() if shard.kind != "row"}
        return Linear(
            tuple(self.parameter(f"{name}.weight", shard) for name, shard in shards.items()),
            tuple(self.parameter(f"{name}.bias", shard.of_outputs) for name, shard in biased.items()),
        )

    def _granule(self, name: str) -> int:
        return granule(self._shape(name)[1], self.block_len(name), self.num_ranks)

    def block_len(self, name: str) -> int:
        """How many inputs of a matrix cannot be cut apart."""
        full = f"{self.prefix}{name}.weight"
        if self.num_ranks == 1:
            return 1
        if (scheme := scheme_in(self.quantization, full, self.table[full])) is not None:
            return scheme.block_len
        return BLOCK_FORMATS[self.source.take(full, self.table[full]).dtype][0]

    def _shape(self, name: str) -> Shape:
        return self.table[f"{self.prefix}{name}.weight"]


def scheme_in(quantization: Quantization | None, name: str, shape: Shape) -> Scheme | None:
    """How a parameter is stored; None: as its tensor's own type says."""
    return None if quantization is None else quantization.scheme_of(name, shape)


def with_biases(table: TensorTable, *names: str) -> TensorTable:
    """Add a bias, one entry per row, for each named weight, or for every weight if none is named."""
    chosen = names or tuple(name.removesuffix(".weight") for name in table)
    return table | {f"{name}.bias": table[f"{name}.weight"][:1] for name in chosen}


def in_layers(a: Architecture, layer: TensorTable, prefix: str = "model.layers") -> TensorTable:
    """A layer's tensors, for every layer."""
    return {f"{prefix}.{i}.{name}": shape for i in range(a.num_layers) for name, shape in layer.items()}
