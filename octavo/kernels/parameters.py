"""Parameters: the tensors a model has learned, under their names in its checkpoint, and how ranks share them.

    Parameter   model.layers.3.mlp.down_proj.weight: its tensors in the file, and the scheme that stores them
    Linear      y = x W^T + bias: one matrix, or several stacked, each with its own name
    Shard       column       each rank has some rows of [out, in], and so some of a layer's outputs
                row          each rank has some columns, and so some of its inputs; the ranks' products are added up
                heads        rows, as whole attention heads; a rank has the KV heads that its query heads read
                replicated   every rank has the whole parameter

Ops take parameters as arguments, so a backend knows each weight by its name. Nothing is read until a backend asks for
the numbers, and no parameter keeps the numbers it has read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from octavo.kernels.scaled import ScaledFormat, ScaledTensor
from octavo.kernels.tensor import Cut, HostTensor, StoredTensor

Shape = tuple[int, ...]
ShardKind = Literal["column", "row", "heads", "replicated"]


class Scheme(Protocol):
    """How a parameter's numbers are stored. A backend that multiplies codes and scales looks at `format` and uses
    `compact`; all others use `dense`."""

    @property
    def name(self) -> str: ...

    @property
    def format(self) -> ScaledFormat | None:
        """Of the ScaledTensor that `compact` gives; None: it gives a HostTensor."""

    def tensors(self, name: str, shape: Shape) -> dict[str, Shape]:
        """The tensors of a checkpoint that store this parameter, in the order that `compact` and `dense` take."""

    @property
    def block_len(self) -> int:
        """How many inputs cannot be cut apart; 1 if the sources' types alone decide it."""

    def part(self, sources: tuple[StoredTensor, ...], cut: Cut) -> tuple[StoredTensor, ...]:
        """The sources of a rank's part, not read yet. cut: of the parameter. Raises ConfigError if it would cut
        through numbers that share a scale."""

    def compact(self, sources: tuple[StoredTensor, ...]) -> HostTensor | ScaledTensor:
        """The exact numbers, in the smallest format of `kernels/tensor.py` or `kernels/scaled.py` that holds them."""

    def dense(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        """The exact numbers in a dense format."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The shared dimension consists of segments (two for Phi's matrix of gate and up), each of a number of units: rows,
    columns or heads. Ranks share every segment in the way they share `units`."""

    kind: ShardKind = "replicated"
    units: int = 1
    segments: tuple[int, ...] = (1,)

    @classmethod
    def columns(cls, size: int, num_segments: int = 1, granule: int = 1) -> Shard:
        """`size` outputs in all. granule: as many outputs stay together."""
        units = size // num_segments // granule
        return cls("column", units, (units,) * num_segments)

    @classmethod
    def rows(cls, units: int) -> Shard:
        """Inputs in that many units."""
        return cls("row", units, (units,))

    @classmethod
    def heads(cls, num_heads: int, *segments: int) -> Shard:
        """segments: the number of heads of each kind, in their order in the matrix."""
        return cls("heads", num_heads, segments)

    @property
    def of_outputs(self) -> Shard:
        """How ranks share a tensor with one entry per output: a bias."""
        return REPLICATED if self.kind == "row" else self

    def cut(self, shape: Shape, rank: int, num_ranks: int) -> Cut:
        """The rank's part of a tensor of that shape, as in `slices`."""
        return Cut(shape, *self.slices(shape, rank, num_ranks))

    def slices(self, shape: tuple[int, ...], rank: int, num_ranks: int) -> tuple[int, tuple[slice, ...]]:
        """The shared dimension and the rank's slices of it. shape: of the parameter, or of a tensor that belongs to it,
        such as scales for its rows or for blocks of its columns."""
        dimension = len(shape) - 1 if self.kind == "row" else 0
        if self.kind == "replicated":
            return dimension, (slice(0, shape[0]),)
        begin, end = rank * self.units // num_ranks, (rank + 1) * self.units // num_ranks
        slices, start = [], 0
        for segment in self.segments:
            first, last = start + begin * segment // self.units, start + -(-end * segment // self.units)
            slices.append(slice(self._place(first, shape[dimension]), self._place(last, shape[dimension])))
            start += segment
        return dimension, tuple(slices)

    def _place(self, unit: int, length: int) -> int:
        total = sum(self.segments)
        assert unit * length % total == 0, (
            f"{total} units in {length} entries: entry {unit * length / total} is no boundary"
        )
        return unit * length // total


REPLICATED = Shard()


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """shape: of the numbers; the stored tensors may have other shapes. sources: the stored tensors, in the scheme's
    order. first: where a rank's part begins in the whole parameter, along the shared dimension; None: it is whole."""

    name: str
    shape: Shape
    scheme: Scheme
    sources: tuple[StoredTensor, ...]
    shard: Shard = REPLICATED
    first: int | None = None

    def part(self, rank: int, num_ranks: int) -> Parameter:
        """The rank's part of the parameter, of which it reads nothing else."""
        if num_ranks == 1 or self.shard.kind == "replicated":
            return self
        cut = self.shard.cut(self.shape, rank, num_ranks)
        sources = self.scheme.part(self.sources, cut)
        return replace(self, shape=cut.result, sources=sources, first=cut.slices[0].start)

    def compact(self) -> HostTensor | ScaledTensor:
        return self.scheme.compact(self.sources)

    def dense(self) -> HostTensor:
        return self.scheme.dense(self.sources)


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """y = x W^T + bias. `parts`, each [out_i, in], are stacked along the output. A stacked QKV has three parts, which
    may differ in scheme and dtype. Biases, if any: one [out_i] for each part."""

    parts: tuple[Parameter, ...]
    biases: tuple[Parameter, ...] = ()

    @property
    def name(self) -> str:
        """model.layers.3.mlp.down_proj, or model.layers.3.self_attn.q_proj+k_proj+v_proj."""
        whole, *others = (part.name.removesuffix(".weight") for part in self.parts)
        return "+".join([whole, *(name.rsplit(".", 1)[-1] for name in others)])

    @property
    def is_partial(self) -> bool:
        """Whether the products of all ranks are to be added up: each has some of the inputs."""
        return self.parts[0].shard.kind == "row" and self.parts[0].first is not None

    @property
    def in_features(self) -> int:
        return self.parts[0].shape[1]

    @property
    def out_features(self) -> int:
        return sum(part.shape[0] for part in self.parts)
