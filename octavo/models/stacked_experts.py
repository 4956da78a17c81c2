"""Experts that a Hugging Face folder has as one tensor for all of a layer: taken apart into a tensor for each expert.

    Granite    input_linear     [experts, 2F, H]   gate, then up; without the first dimension of the shared expert
               output_linear    [experts, H, F]
    gpt-oss    gate_up_proj     [experts, H, 2F]   columns of gate and up in turns; its bias [experts, 2F]
               down_proj        [experts, F, H]    its bias [experts, H]
               in MXFP4         [experts, 2F, ...] and [experts, H, ...], rows in turns: codes and scales

The canonical form is a matrix for each expert, [out, in], as most families' files have it. Nothing is read here: a
tensor of one expert reads its part of the stack when it is read itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import UnsupportedModelError
from octavo.kernels.parameters import Shape
from octavo.kernels.tensor import BLOCK_FORMATS, DENSE_DTYPES, HostTensor, StoredTensor
from octavo.models.architecture import Architecture
from octavo.models.checkpoint import Checkpoint
from octavo.models.weights import TensorTable


@dataclass(frozen=True, slots=True)
class Stack:
    """name: of the tensor, and parts: of those that it becomes, under a layer's prefix. A * is an expert's number;
    without it the tensor is of one. Of several parts, each has as many outputs, one after the other or in turns.
    is_turned: outputs are the last dimension."""

    name: str
    parts: tuple[str, ...]
    in_turns: bool = False
    is_turned: bool = False

    @property
    def is_of_all(self) -> bool:
        return "*" in self.parts[0]

    def shape(self, count: int, one: Shape) -> Shape:
        """Of the stack of `count` experts' parts of this shape."""
        whole = (len(self.parts) * one[0], *one[1:])
        return (*((count,) if self.is_of_all else ()), *(reversed(whole) if self.is_turned else whole))

    def part(self, stack: NDArray[Any], expert: int, which: int) -> NDArray[Any]:
        """The expert's part of the name `parts[which]`."""
        matrix: NDArray[Any] = stack[expert] if self.is_of_all else stack
        matrix = matrix.T if self.is_turned else matrix
        outputs = len(matrix) // len(self.parts)
        return matrix[which :: len(self.parts)] if self.in_turns else matrix[which * outputs : (which + 1) * outputs]


def _gate_up(prefix: str, kind: str = "weight") -> tuple[str, str]:
    return f"{prefix}.gate_proj.{kind}", f"{prefix}.up_proj.{kind}"


def _gpt_oss(ending: str, kind: str, *, is_turned: bool = False) -> tuple[Stack, Stack]:
    """Of gate and up, and of down. ending: of the stacks' names, kind: of their parts'."""
    prefix = "mlp.experts"
    return (
        Stack(f"{prefix}.gate_up_proj{ending}", _gate_up(f"{prefix}.*", kind), in_turns=True, is_turned=is_turned),
        Stack(f"{prefix}.down_proj{ending}", (f"{prefix}.*.down_proj.{kind}",), is_turned=is_turned),
    )


STACKS: dict[str, tuple[Stack, ...]] = {
    "gpt_oss": (
        *_gpt_oss("", "weight", is_turned=True),
        *_gpt_oss("_blocks", "weight_blocks"),
        *_gpt_oss("_scales", "weight_scales"),
        *_gpt_oss("_bias", "bias"),
    ),
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
        _check_is_dense(checkpoint, name, first, required[first])
        source = checkpoint.take(name, stack.shape(count, required[first]))
        names = [[_named(prefix, each, expert) for each in stack.parts] for expert in range(count)]
        stored |= _parts(stack, source, names, required[first])
        del stored[name]
    return replace(checkpoint, stored=stored)


def in_dense_stacks(checkpoint: Checkpoint, parameters: TensorTable) -> set[str]:
    """The parameters that are parts of dense stacks."""
    found: set[str] = set()
    for prefix, stack in _stacks(checkpoint.architecture):
        source = checkpoint.stored.get(prefix + stack.name)
        if source is None or source.dtype not in DENSE_DTYPES:
            continue
        count = _count(checkpoint) if stack.is_of_all else 1
        found |= {_named(prefix, part, expert) for expert in range(count) for part in stack.parts}
    return found & parameters.keys()


def _check_is_dense(checkpoint: Checkpoint, name: str, first: str, one: Shape) -> None:
    """Methods but MXFP4 have a matrix of codes for each expert, or leave experts out. first: the stack's first part."""
    family, method = checkpoint.architecture.family, checkpoint.architecture.quantization
    if method is None or name not in checkpoint.stored or not first.endswith(".weight"):
        return
    if method.scheme_of(first, one) is not None:
        raise UnsupportedModelError(
            f"{checkpoint.label}: tensor {name!r} is a stack of experts in {method.method}; Octavo reads stacks of "
            f"{family} that are dense{' or in mxfp4' if family == 'gpt_oss' else ''}, and in {method.method} a matrix "
            f"for each expert, such as {first!r}"
        )


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
