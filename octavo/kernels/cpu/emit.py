"""Hands a recorded program to C++, one call an instruction.

Weights are packed here, while their file's pages are at hand; small arrays (norms, biases, angles) and
embedding tables are borrowed, and `Emitter.borrowed` keeps them alive.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Array, byref
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.cpu.library import AttentionSpec, RotarySpec, Slot, ThreadPool, address, check
from octavo.kernels.ops import WORDS, Activation, AttentionLayer, FloatArray, Index, LinearWeight
from octavo.kernels.program.buffers import BufferPlan
from octavo.kernels.program.recorder import Instruction, Value
from octavo.kernels.tensor import DTYPES, HostTensor


def slots(plan: BufferPlan, values: Sequence[Value]) -> Array[Slot]:
    """Where values lie in a program whose buffers were shared out so."""
    places = [Slot(plan.buffer_of[value.storage], value.width, value.stride) for value in values]
    return (Slot * len(places))(*places)


class Emitter:
    """Appends instructions to one C++ program."""

    def __init__(
        self, library: ctypes.CDLL, pool: ThreadPool, program: int, plan: BufferPlan, activation_bytes: int
    ) -> None:
        self.borrowed: list[Any] = []
        self._library = library
        self._pool = pool
        self._program = program
        self._plan = plan
        self._activation_bytes = activation_bytes

    def emit(self, instruction: Instruction) -> None:
        places = slots(self._plan, (*instruction.inputs, *instruction.outputs))
        getattr(self, f"_{instruction.op}")(*places, **instruction.arguments)

    def _embedding(self, out: Slot, table: HostTensor, index: Index, offset: int, scale: float) -> None:
        data, dtype = self._borrow(table.data), DTYPES.index(table.dtype)
        self._append(
            "embedding", dtype, data, table.rows, table.row_bytes, WORDS["Index"].index(index), offset, scale, out
        )

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
                *("linear", self._pool.handle, DTYPES.index(dtype), address(data), rows, weight.in_features),
                *(self._activation_bytes, part_bias, x, out, first),
            )
            first += rows

    def _rms_norm(self, x: Slot, out: Slot, weight: FloatArray, eps: float) -> None:
        self._append("rms_norm", x, self._borrow(weight), eps, out)

    def _add_rms_norm(self, x: Slot, residual: Slot, out: Slot, total: Slot, weight: FloatArray, eps: float) -> None:
        self._append("add_rms_norm", x, residual, self._borrow(weight), eps, out, total)

    def _layer_norm(self, x: Slot, out: Slot, weight: FloatArray, bias: FloatArray | None, eps: float) -> None:
        self._append("layer_norm", x, self._borrow(weight), self._borrow(bias), eps, out)

    def _add(self, x: Slot, y: Slot, out: Slot) -> None:
        self._append("add", x, y, out)

    def _activation(self, x: Slot, out: Slot, kind: Activation) -> None:
        self._append("activation", WORDS["Activation"].index(kind), x, out)

    def _gated_activation(self, gate_up: Slot, out: Slot, kind: Activation) -> None:
        self._append("gated_activation", WORDS["Activation"].index(kind), gate_up, out)

    def _rotary_kv_write(self, qkv: Slot, q: Slot, layer: AttentionLayer) -> None:
        rotary = layer.rotary
        spec = RotarySpec(
            *(layer.group, layer.index_in_group, layer.num_heads, layer.num_kv_heads, layer.head_dim),
            *(self._borrow(layer.q_norm), self._borrow(layer.k_norm), layer.norm_eps),
            *(self._borrow(rotary.cos if rotary else None), self._borrow(rotary.sin if rotary else None)),
            rotary.rotary_dim if rotary else 0,
        )
        self._append("rotary_kv_write", byref(spec), qkv)

    def _paged_attention(self, q: Slot, out: Slot, layer: AttentionLayer) -> None:
        spec = AttentionSpec(
            *(layer.group, layer.index_in_group, layer.num_heads, layer.num_kv_heads, layer.head_dim),
            *(layer.scale, layer.window or 0, layer.softcap or 0.0),
        )
        self._append("paged_attention", byref(spec), q, out)

    def _softcap(self, x: Slot, out: Slot, cap: float) -> None:
        self._append("softcap", cap, x, out)

    def _append(self, op: str, *arguments: Any) -> None:
        code = getattr(self._library, f"octavo_program_{op}")(self._program, *arguments)
        check(self._library, code, f"compiling {op} for the cpu backend")

    def _borrow(self, array: NDArray[Any] | None) -> int | None:
        """The array's address, as contiguous float32 (or bytes), valid as long as this program."""
        if array is None:
            return None
        if array.dtype != np.uint8:
            array = np.ascontiguousarray(array, np.float32)
        self.borrowed.append(array)
        return address(array)
