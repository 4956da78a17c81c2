"""Hands a recorded program to C++, one call an instruction.

Weights are packed here, while their file's pages are at hand; small arrays (norms, biases, angles) and
embedding tables are borrowed, and `Emitter.borrowed` keeps them alive.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Array, addressof, byref
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.cpu.library import Argument, Arguments, LayerSpec, Slot, ThreadPool, address, check
from octavo.kernels.ops import OPS, WORDS, AttentionLayer, LinearWeight
from octavo.kernels.program.buffers import BufferPlan
from octavo.kernels.program.recorder import Instruction, Value
from octavo.kernels.tensor import DTYPES, HostTensor


def slots(plan: BufferPlan, values: Sequence[Value]) -> Array[Slot]:
    """Where values lie in a program whose buffers were shared out so."""
    places = [Slot(plan.buffer_of[value.storage], value.width, value.stride) for value in values]
    return (Slot * len(places))(*places)


class Emitter:
    """Appends instructions to one C++ program. ops: the op that each of the program's instructions is of."""

    def __init__(
        self, library: ctypes.CDLL, pool: ThreadPool, program: int, plan: BufferPlan, activation_bytes: int
    ) -> None:
        self.borrowed: list[Any] = []
        self.ops: list[str] = []
        self._library = library
        self._pool = pool
        self._program = program
        self._plan = plan
        self._activation_bytes = activation_bytes

    def emit(self, instruction: Instruction) -> None:
        places = slots(self._plan, (*instruction.inputs, *instruction.outputs))
        if instruction.op == "linear":
            x, out = places
            return self._linear(x, out, instruction.arguments["weight"])
        kinds = OPS[instruction.op].kinds
        given = [each for name, kind in kinds.items() for each in self._arguments(kind, instruction.arguments[name])]
        self._append("append", instruction.op, instruction.op.encode(), places, len(places), byref(Arguments(*given)))

    def _linear(self, x: Slot, out: Slot, weight: LinearWeight) -> None:
        """Neighbouring parts of one type become one matrix: fewer, larger products."""
        bias = self._borrow(weight.bias) or 0
        first = 0
        for dtype, parts in groupby(weight.parts, key=lambda part: part.dtype):
            group = list(parts)
            data = group[0].data if len(group) == 1 else np.concatenate([part.data for part in group])
            rows = sum(part.rows for part in group)
            part_bias = bias + 4 * first if bias else None
            self._append(
                *("append_linear", "linear", self._pool.handle, DTYPES.index(dtype), address(data), rows),
                *(weight.in_features, self._activation_bytes, part_bias, x, out, first),
            )
            first += rows

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
        if isinstance(value, HostTensor):
            whole = (DTYPES.index(value.dtype), self._borrow(value.data), value.rows, value.row_bytes)
            return [Argument(whole=each) for each in whole]
        if isinstance(value, AttentionLayer):
            spec = self._layer(value)
            self.borrowed.append(spec)
            return [Argument(address=addressof(spec))]
        return [Argument(address=self._borrow(value))]

    def _layer(self, layer: AttentionLayer) -> LayerSpec:
        rotary = layer.rotary
        return LayerSpec(
            *(layer.group, layer.index_in_group, layer.num_heads, layer.num_kv_heads, layer.head_dim),
            *(layer.scale, layer.window or 0, layer.softcap or 0.0),
            *(self._borrow(layer.q_norm), self._borrow(layer.k_norm), layer.norm_eps),
            *(self._borrow(rotary.cos if rotary else None), self._borrow(rotary.sin if rotary else None)),
            rotary.rotary_dim if rotary else 0,
        )

    def _borrow(self, array: NDArray[Any] | None) -> int | None:
        """The array's address, as contiguous float32 (or bytes), valid as long as this program."""
        if array is None:
            return None
        if array.dtype != np.uint8:
            array = np.ascontiguousarray(array, np.float32)
        self.borrowed.append(array)
        return address(array)
