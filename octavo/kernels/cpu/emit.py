"""Hands a recorded program to C++, one call an instruction.

Weights are packed here, while their file's pages are in memory. Small arrays (norms, biases, angles) and embedding
tables are borrowed; `CpuWeights` keeps them alive.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Array, addressof, byref
from typing import Any

from octavo.kernels.cpu.library import Argument, Arguments, LayerSpec, Slot, ThreadPool, address, check
from octavo.kernels.cpu.weights import CpuWeights
from octavo.kernels.kv_layout import KVLayout
from octavo.kernels.ops import OPS, WORDS, AttentionLayer
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.program.recorder import BufferPlan, Instruction, Value
from octavo.kernels.tensor import DTYPES


def slots(plan: BufferPlan, values: Sequence[Value]) -> Array[Slot]:
    """The slots of values under a buffer plan."""
    places = [Slot(plan.buffer_of[value.storage], value.width, value.stride) for value in values]
    return (Slot * len(places))(*places)


class Emitter:
    """Appends instructions to one C++ program. ops: the op name of each instruction."""

    def __init__(
        self,
        library: ctypes.CDLL,
        pool: ThreadPool,
        program: int,
        plan: BufferPlan,
        kv: KVLayout,
        weights: CpuWeights,
        activation_bytes: int,
    ) -> None:
        self.ops: list[str] = []
        self._library = library
        self._pool = pool
        self._program = program
        self._plan = plan
        self._kv = kv
        self._weights = weights
        self._activation_bytes = activation_bytes

    def emit(self, instruction: Instruction) -> None:
        places = slots(self._plan, (*instruction.inputs, *instruction.outputs))
        if instruction.op == "linear":
            x, out = places
            return self._linear(x, out, instruction.arguments["weight"])
        kinds = OPS[instruction.op].kinds
        given = [each for name, kind in kinds.items() for each in self._arguments(kind, instruction.arguments[name])]
        self._append("append", instruction.op, instruction.op.encode(), places, len(places), byref(Arguments(*given)))

    def _linear(self, x: Slot, out: Slot, weight: Linear) -> None:
        bias = self._weights.vector(*weight.biases)
        first = 0
        for matrix in self._weights.matrices(weight):
            part_bias = None if bias is None else bias + 4 * first
            self._append(
                *("append_linear", "linear", self._pool.handle, DTYPES.index(matrix.dtype), address(matrix.data)),
                *(matrix.rows, matrix.cols, self._activation_bytes, part_bias, x, out, first),
            )
            first += matrix.rows

    def _append(self, function: str, op: str, *arguments: Any) -> None:
        code = getattr(self._library, f"octavo_program_{function}")(self._program, *arguments)
        check(self._library, code, f"compiling {op} for the cpu backend")
        self.ops.append(op)

    def _arguments(self, kind: str, value: Any) -> list[Argument]:
        """A parameter of that kind, as C++ takes it."""
        if kind == "float":
            return [Argument(real=value)]
        if kind == "int":
            return [Argument(whole=value)]
        if kind in WORDS:
            return [Argument(whole=WORDS[kind].index(value))]
        if isinstance(value, AttentionLayer):
            return [Argument(address=addressof(self._spec(value)))]
        if value is not None and len(value.shape) == 2:
            table = self._weights.table(value)
            whole = (DTYPES.index(table.dtype), address(table.data), table.rows, table.row_bytes)
            return [Argument(whole=each) for each in whole]
        return [Argument(address=self._vector(value))]

    def _spec(self, layer: AttentionLayer) -> LayerSpec:
        """The layer's, of which each op of its attention is handed the same."""
        if (made := self._weights.specs.get(layer)) is not None:
            return made
        rotary = layer.rotary
        angles = (None, None) if rotary is None else map(self._weights.borrow, (rotary.cos, rotary.sin))
        spec = self._weights.specs[layer] = LayerSpec(
            *(layer.group, self._kv.layer_offset(layer), layer.num_heads, layer.num_kv_heads, layer.head_dim),
            *(layer.scale, layer.window or 0, layer.softcap or 0.0),
            *(self._vector(layer.q_norm), self._vector(layer.k_norm), layer.norm_eps),
            *(*angles, rotary.rotary_dim if rotary else 0),
        )
        return spec

    def _vector(self, parameter: Parameter | None) -> int | None:
        return None if parameter is None else self._weights.vector(parameter)
