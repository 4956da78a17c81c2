"""Recorder: an `Ops` that writes down what a model's forward pass calls.

Its tensors are `Value`s: a width and the storage they live in. Nothing is computed. `buffers.py` assigns memory to the
recorded instructions, and a backend turns them into calls: one into C++ for the whole step, or one launch each on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.kernels.ops import AttentionLayer, Model, Op, Ops, Result, Tensor
from octavo.kernels.parameters import Linear, Parameter


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A [T, width] tensor: the first `width` columns of its storage. `storage` is a number the recorder gives
    out; two values share one where the second is written over the first, or is part of it."""

    width: int
    storage: int
    stride: int


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """One call: op name as in `Ops`, tensors in, tensors out, and everything else by the op's own names."""

    op: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Instructions in order; `given` are filled before the first, `kept` are read after the last. function: the body or
    head that called them."""

    instructions: Sequence[Instruction]
    kept: tuple[Value, ...]
    given: tuple[Value, ...] = ()
    function: Callable[..., Any] | None = None

    def run_again(self, ops: Ops, given: Iterable[Tensor]) -> None:
        """The function, on other ops."""
        assert self.function is not None, "instructions that were written by hand have no function"
        self.function(ops, *given)

    @property
    def layers(self) -> list[AttentionLayer]:
        return [each.arguments["layer"] for each in self.instructions if each.op == "paged_attention"]

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter that an instruction reads, once per reader."""
        for instruction in self.instructions:
            for argument in instruction.arguments.values():
                if isinstance(argument, Parameter):
                    yield argument
                elif isinstance(argument, Linear):
                    yield from (*argument.parts, *argument.biases)
                elif isinstance(argument, AttentionLayer):
                    yield from (norm for norm in (argument.q_norm, argument.k_norm) if norm is not None)


class Recorder(Ops):
    """Records instructions. Rejects tensors of the wrong width and tensors that an earlier op consumed."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self._num_storages = 0
        self._dead: set[Value] = set()

    def new_value(self, width: int) -> Value:
        self._num_storages += 1
        return Value(width, self._num_storages - 1, width)

    def apply(self, op: Op, inputs: tuple[Value, ...], arguments: dict[str, Any]) -> Value | tuple[Value, ...]:
        for value in inputs:
            assert isinstance(value, Value), f"{op.name} takes tensors that ops gave, got a {type(value).__name__}"
            assert value not in self._dead, f"{op.name} reads a tensor that an earlier op consumed (see Ops)"
        results = op.results(self, *inputs, **arguments)
        outputs = tuple(map(self._place, results if isinstance(results, tuple) else (results,)))
        self._dead.update(value for name, value in zip(op.inputs, inputs, strict=True) if name in op.consumed)
        self.instructions.append(Instruction(op.name, inputs, outputs, arguments))
        return outputs if isinstance(results, tuple) else outputs[0]

    def _place(self, result: Result) -> Value:
        if result.within is None:
            return self.new_value(result.width)
        return Value(result.width, result.within.storage, result.within.stride)


def record(function: Callable[..., Tensor | tuple[Tensor, ...]], *widths: int) -> Recording:
    """Record a body or a head on tensors of these widths."""
    recorder = Recorder()
    given = tuple(map(recorder.new_value, widths))
    kept = function(recorder, *given)
    return Recording(recorder.instructions, kept if isinstance(kept, tuple) else (kept,), given, function)


def record_model(model: Model) -> tuple[Recording, dict[str, Recording]]:
    """The body, and each head by name."""
    assert model.inputs == ("input_ids",), f"steps bring token ids, and this model takes {model.inputs}"
    body = record(model.body)
    widths = [value.width for value in body.kept]
    return body, {name: record(head, *widths) for name, head in model.heads.items()}
