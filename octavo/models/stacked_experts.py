"""Experts that a Hugging Face folder has as one tensor for all of a layer: taken apart into a tensor for each expert.

    Granite    input_linear     [experts, 2F, H]   gate, then up; without the first dimension of the shared expert
               output_linear    [experts, H, F]

The canonical form is a matrix for each expert, [out, in], as most families' files have it. Nothing is read here: a
tensor of one expert reads its part of the stack when it is read itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.parameters import Shape
from octavo.kernels.tensor import BLOCK_FORMATS, HostTensor, StoredTensor
from octavo.models.architecture import Architecture
from octavo.models.checkpoint import Checkpoint
from octavo.models.weights import TensorTable


@dataclass(frozen=True, slots=True)
class Stack:
    """name: of the tensor, and parts: of those that it becomes, under a layer's prefix. A * is an expert's number;
    without it the tensor is of one. Of several parts, each has as many outputs."""

    name: str
    parts: tuple[str, ...]

    @property
    def is_of_all(self) -> bool:
        return "*" in self.parts[0]

    def shape(self, count: int, one: Shape) -> Shape:
        """Of the stack of `count` experts' parts of this shape."""
        return (*((count,) if self.is_of_all else ()), len(self.parts) * one[0], *one[1:])

    def part(self, stack: NDArray[Any], expert: int, which: int) -> NDArray[Any]:
        """The expert's part of the name `parts[which]`."""
        matrix: NDArray[Any] = stack[expert] if self.is_of_all else stack
        outputs = len(matrix) // len(self.parts)
        return matrix[which * outputs : (which + 1) * outputs]


def _gate_up(prefix: str) -> tuple[str, str]:
    return f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight"


STACKS: dict[str, tuple[Stack, ...]] = {
    "granitemoe": (
        Stack("block_sparse_moe.input_linear.weight", _gate_up("block_sparse_moe.experts.*")),
        Stack("block_sparse_moe.output_linear.weight", ("block_sparse_moe.experts.*.down_proj.weight",)),
        Stack("shared_mlp.input_linear.weight", _gate_up("shared_mlp")),
        Stack("shared_mlp.output_linear.weight", ("shared_mlp.down_proj.weight",)),
    ),
}


def taken_apart(checkpoint: Checkpoint, required: TensorTable) -> Checkpoint:
    """The same checkpoint with a tensor for each expert. required: the canonical tensors and their shapes. Raises
    ModelLoadError, with the stack's own name, if one is missing or has another shape."""
    stored = dict(checkpoint.stored)
    for prefix, stack in _stacks(checkpoint.architecture):
        name, first = prefix + stack.name, _named(prefix, stack.parts[0], 0)
        if first not in required or (first in stored and name not in stored):
            continue
        count = _count(checkpoint) if stack.is_of_all else 1
        source = checkpoint.take(name, stack.shape(count, required[first]))
        names = [[_named(prefix, each, expert) for each in stack.parts] for expert in range(count)]
        stored |= _parts(stack, source, names, required[first])
        del stored[name]
    return replace(checkpoint, stored=stored)


def _stacks(architecture: Architecture) -> Iterator[tuple[str, Stack]]:
    """Each layer's, with the layer's prefix."""
    for layer in range(architecture.num_layers):
        yield from ((f"model.layers.{layer}.", stack) for stack in STACKS.get(architecture.family, ()))


def _named(prefix: str, name: str, expert: int) -> str:
    return prefix + name.replace("*", str(expert))


def _count(checkpoint: Checkpoint) -> int:
    assert checkpoint.architecture.experts is not None, "the family has experts"
    return checkpoint.architecture.experts.routing.num_experts


def _parts(stack: Stack, source: StoredTensor, names: list[list[str]], one: Shape) -> Mapping[str, StoredTensor]:
    """names: of each expert, in the order of `stack.parts`."""

    def of(expert: int, which: int) -> StoredTensor:
        def read() -> HostTensor:
            part = np.ascontiguousarray(stack.part(_words(source.read()), expert, which))
            return HostTensor(source.dtype, one, part.reshape(-1).view(np.uint8))

        label = f"{source.label}, expert {expert}" if stack.is_of_all else source.label
        return StoredTensor(source.dtype, one, read, label=label)

    return {name: of(expert, which) for expert, each in enumerate(names) for which, name in enumerate(each)}


def _words(tensor: HostTensor) -> NDArray[Any]:
    """Elements as unsigned integers: numpy has no type for some."""
    return tensor.data.view(f"u{BLOCK_FORMATS[tensor.dtype][1]}").reshape(tensor.shape)
