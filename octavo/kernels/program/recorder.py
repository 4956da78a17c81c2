"""A model's forward pass as a program: recorded, given buffers, and, for debugging, run op by op.

    model.body(Recorder())  ->  instructions on Values: a width, and the storage it lives in; nothing is computed
    share_buffers(...)      ->  a buffer for each storage; storages that never live at once may share one
    OpByOp                  ->  runs the program's next instruction each time the model's own Python calls an op

A backend turns the instructions into calls: one into C++ for the whole step, or one launch each on a GPU.

With `trace_ops` every step runs op by op, with the program's kernels and buffers. A debugger then stops in the model's
code for a real request, the values there are arrays, and standard error has a line for each op:

    gated_activation    silu                                        [5, 3072] -> [5, 1536]  norm 41.7203
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.kernels.adapters import AdaptedModule
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.mixture import Mixture
from octavo.kernels.model import Model
from octavo.kernels.op import Op, Result
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear, Parameter


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A [T, width] tensor: the first `width` columns of its storage. The recorder numbers the storages. Two values
    share one if the second overwrites the first or is part of it."""

    width: int
    storage: int
    stride: int


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """One call of an op: its tensors in and out, and its other arguments by name."""

    op: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Instructions in order; `given` are filled before the first, `kept` are read after the last. function: the
    recorded body or head."""

    instructions: Sequence[Instruction]
    kept: tuple[Value, ...]
    given: tuple[Value, ...] = ()
    function: Callable[..., Any] | None = None

    def run_again(self, ops: Ops, given: Iterable[Tensor]) -> None:
        """Call the function with other ops."""
        assert self.function is not None, "instructions written by hand have no function"
        self.function(ops, *given)

    @property
    def layers(self) -> list[AttentionLayer]:
        return [each.arguments["layer"] for each in self.instructions if each.op == "paged_attention"]

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter that an instruction reads, once for each such instruction."""
        for instruction in self.instructions:
            for argument in instruction.arguments.values():
                if isinstance(argument, Parameter):
                    yield argument
                elif isinstance(argument, Linear):
                    yield from (*argument.parts, *argument.biases)
                elif isinstance(argument, Mixture | AttentionLayer):
                    yield from argument.parameters
                    if isinstance(argument, AttentionLayer) and argument.latent is not None:
                        yield argument.latent.up


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
            assert isinstance(value, Value), f"{op.name} takes the results of ops, got a {type(value).__name__}"
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
    """Record a body or a head that takes tensors of these widths."""
    recorder = Recorder()
    given = tuple(map(recorder.new_value, widths))
    kept = function(recorder, *given)
    return Recording(recorder.instructions, kept if isinstance(kept, tuple) else (kept,), given, function)


def record_model(model: Model) -> tuple[Recording, dict[str, Recording]]:
    """The body, and each head by name."""
    assert model.inputs.keys() <= {"input_ids", "hidden_states"}, f"no step has what this model takes: {model.inputs}"
    body = record(model.body, *(columns for name, columns in model.inputs.items() if name == "hidden_states"))
    widths = [value.width for value in body.kept]
    return body, {name: record(head, *widths) for name, head in model.heads.items()}


@dataclass(frozen=True, slots=True)
class BufferPlan:
    """widths[b]: floats per token of buffer b. buffer_of[storage]: the storage's buffer."""

    widths: list[int]
    buffer_of: dict[int, int]


def share_buffers(instructions: Sequence[Instruction], given: Sequence[Value], kept: Sequence[Value]) -> BufferPlan:
    """Share buffers by when each storage is last used. A decoder of any depth needs about four: the residual stream
    and the values of one layer."""
    last_use = {value.storage: -1 for value in given}
    for index, instruction in enumerate(instructions):
        for value in (*instruction.inputs, *instruction.outputs):
            last_use[value.storage] = index
    last_use |= {value.storage: len(instructions) for value in kept}

    widths: list[int] = []
    buffer_of: dict[int, int] = {}
    free: list[int] = []

    def place(value: Value) -> None:
        if value.storage in buffer_of:
            return
        buffer = _closest(free, widths, value.stride)
        if buffer is None:
            buffer = len(widths)
            widths.append(0)
        else:
            free.remove(buffer)
        widths[buffer] = max(widths[buffer], value.stride)
        buffer_of[value.storage] = buffer

    for value in given:
        place(value)
    for index, instruction in enumerate(instructions):
        for value in instruction.outputs:
            place(value)
        # Freed only now: an op must not write its result to a buffer that it still reads.
        ended = {value.storage for value in (*instruction.inputs, *instruction.outputs)}
        free.extend(buffer_of[storage] for storage in sorted(ended) if last_use[storage] == index)
    return BufferPlan(widths, buffer_of)


def _closest(free: list[int], widths: list[int], width: int) -> int | None:
    """The free buffer that wastes least: the narrowest that is wide enough, else the widest."""
    enough = [buffer for buffer in free if widths[buffer] >= width]
    if enough:
        return min(enough, key=lambda buffer: widths[buffer])
    return max(free, key=lambda buffer: widths[buffer], default=None)


#: called after each op with its name, parameters, inputs and outputs
See = Callable[[str, Mapping[str, Any], Sequence[Tensor], Sequence[Tensor]], None]


class OpByOp(Ops):
    """Runs one instruction per call. run: runs the instruction of that index. view: a value's memory as an array."""

    def __init__(
        self, instructions: Sequence[Instruction], run: Callable[[int], None], view: Callable[[Value], Tensor], see: See
    ) -> None:
        self._instructions = enumerate(instructions)
        self._run, self._view, self._see = run, view, see

    def apply(self, op: Op, inputs: tuple[Tensor, ...], arguments: dict[str, Any]) -> Any:
        index, instruction = next(self._instructions)
        assert instruction.op == op.name, f"the model calls {op.name} where it called {instruction.op} when recorded"
        self._run(index)
        outputs = tuple(map(self._view, instruction.outputs))
        self._see(op.name, arguments, inputs, outputs)
        return outputs if len(outputs) > 1 else outputs[0]


def printer(norm: Callable[[Tensor], float]) -> See:
    """Prints a line for each op. norm: computes the norm of a backend's array."""

    def see(op: str, arguments: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        names = " ".join(filter(None, map(_name, arguments.values())))
        before, after = (" ".join(str(list(x.shape)) for x in tensors) for tensors in (inputs, outputs))
        norms = " ".join(f"{norm(x):.6g}" for x in outputs)
        print(f"{op:<19} {names:<43} {before} -> {after}  norm {norms}", file=sys.stderr)

    return see


def _name(argument: object) -> str:
    """The argument's name, or an empty string."""
    if isinstance(argument, Linear | Parameter | Mixture | AdaptedModule):
        return argument.name
    if isinstance(argument, AttentionLayer):
        return f"group {argument.group} layer {argument.index_in_group}"
    return argument if isinstance(argument, str) else ""
