"""Parameters: what a model has learned, under the names that its checkpoint gives them.

    Parameter   model.layers.3.mlp.down_proj.weight: its tensors in the file, and the scheme they are stored by
    Linear      y = x W^T + bias: one matrix, or several stacked, each with its own name

Ops take these as arguments, so a backend knows each weight by its name. Nothing is read until a backend asks for the
numbers, and no parameter keeps what was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octavo.kernels.shard import REPLICATED, Shard
from octavo.kernels.tensor import HostTensor, StoredTensor

Shape = tuple[int, ...]


class Scheme(Protocol):
    """How a parameter's numbers are stored. A backend that multiplies a scheme's own format looks at `name`; all
    others take the numbers as one of these."""

    @property
    def name(self) -> str: ...

    def tensors(self, name: str, shape: Shape) -> dict[str, Shape]:
        """What a checkpoint has for a parameter of that name and shape, as `compact` and `dense` take it."""

    def compact(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        """The exact numbers in any format of `kernels/tensor.py`, the smallest that there is."""

    def dense(self, sources: tuple[StoredTensor, ...]) -> HostTensor:
        """The exact numbers in a dense format."""


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """shape: of the numbers, whatever the shapes of the tensors that store them. sources: those tensors, in the order
    that the scheme wants them in. shard: how ranks share it."""

    name: str
    shape: Shape
    scheme: Scheme
    sources: tuple[StoredTensor, ...]
    shard: Shard = REPLICATED

    def compact(self) -> HostTensor:
        return self.scheme.compact(self.sources)

    def dense(self) -> HostTensor:
        return self.scheme.dense(self.sources)


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """y = x W^T + bias. `parts` are stacked along the output: a stacked QKV is three parts, which may differ in scheme
    and dtype. Each part is [out_i, in]; biases, if any, one [out_i] a part."""

    parts: tuple[Parameter, ...]
    biases: tuple[Parameter, ...] = ()

    @property
    def name(self) -> str:
        """model.layers.3.mlp.down_proj, or model.layers.3.self_attn.q_proj+k_proj+v_proj."""
        whole, *others = (part.name.removesuffix(".weight") for part in self.parts)
        return "+".join([whole, *(name.rsplit(".", 1)[-1] for name in others)])

    @property
    def in_features(self) -> int:
        return self.parts[0].shape[1]

    @property
    def out_features(self) -> int:
        return sum(part.shape[0] for part in self.parts)
