"""A recorded program run op by op, while the model's own Python calls the ops: for whoever looks for a fault.

    layers/blocks.py:  ops.gated_activation(x, "silu")  ->  the program's next instruction runs; one line reports it

With `trace_ops` every step runs so. The kernels and the buffers are the program's, but a debugger stops in the model's
code for a real request, the values there are arrays, and standard error has a line for each op:

    gated_activation    silu                                        [5, 3072] -> [5, 1536]  norm 41.7203
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from octavo.kernels.ops import AttentionLayer, Op, Ops, Tensor
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.program.recorder import Instruction, Value

#: called after each op with its name, parameters, inputs and outputs
See = Callable[[str, Mapping[str, Any], Sequence[Tensor], Sequence[Tensor]], None]


class OpByOp(Ops):
    """Runs one instruction per call. run: runs the instruction of an index. view: a value's memory as an array."""

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
    if isinstance(argument, Linear | Parameter):
        return argument.name
    if isinstance(argument, AttentionLayer):
        return f"group {argument.group} layer {argument.index_in_group}"
    return argument if isinstance(argument, str) else ""
