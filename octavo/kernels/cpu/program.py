"""CpuProgram: a recording handed to C++, which runs it as a whole; here its ops can be timed, or run one by one.

Matrices are packed as their instructions are appended, while their pages of the file are in memory. Small arrays
(norms, biases, angles) and embedding tables are borrowed; `CpuWeights` keeps them alive.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Array, addressof, byref, c_int64, c_void_p
from typing import Any, Literal

import numpy as np

from octavo.kernels.adapters import AdaptedModule
from octavo.kernels.arrays import FloatArray
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cpu.latent import head_matrices
from octavo.kernels.cpu.library import Argument, Arguments, LayerSpec, Slot, ThreadPool, address, check
from octavo.kernels.cpu.mixture import pack_mixture
from octavo.kernels.cpu.weights import CpuWeights
from octavo.kernels.kv_layout import LARGEST_CODE, KVLayout, kv_scales
from octavo.kernels.ops import OPS, WORDS
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.program.recorder import BufferPlan, Instruction, OpByOp, Recording, See, Value, share_buffers
from octavo.kernels.tensor import DTYPES, HostTensor


def slots(plan: BufferPlan, values: Sequence[Value]) -> Array[Slot]:
    """The slots of values in a buffer plan."""
    places = [Slot(plan.buffer_of[value.storage], value.width, value.stride) for value in values]
    return (Slot * len(places))(*places)


class CpuProgram:
    """The C++ model owns the instructions. They are in the order of the recording, one or more for each of its own."""

    def __init__(
        self,
        library: ctypes.CDLL,
        threads: ThreadPool,
        model: c_void_p,
        which: Literal["forward", "head"],
        recording: Recording,
        kv: KVLayout,
        weights: CpuWeights,
        activation_bytes: int,
        see: See | None,
    ) -> None:
        self._library = library
        self._traced = None if see is None else (recording, see)
        self.plan = share_buffers(recording.instructions, recording.given, recording.kept)
        widths = np.array(self.plan.widths, np.int32)
        self._handle = getattr(library, f"octavo_model_{which}_program")(model, address(widths), len(widths))
        emitter = _Emitter(library, threads, self._handle, self.plan, kv, weights, activation_bytes)
        self._ends = []  # of each recorded instruction, as an index into C++'s
        for instruction in recording.instructions:
            emitter.emit(instruction)
            self._ends.append(len(emitter.ops))
        self._ops = emitter.ops

    def times(self) -> list[tuple[str, int, float]]:
        """(op, number of calls, seconds) for each instruction in C++."""
        seconds, calls = (ctypes.c_double * len(self._ops))(), (c_int64 * len(self._ops))()
        self._library.octavo_program_times(self._handle, seconds, calls)
        return list(zip(self._ops, calls, seconds, strict=True))

    def run_op_by_op(self, num_rows: int) -> None:
        """Run a step of `num_rows` rows that the C++ model has begun. Needs `see`, which is shown each op's result."""
        assert self._traced is not None, "a program without `see` runs as a whole"
        recording, see = self._traced

        def run(index: int) -> None:
            first = self._ends[index - 1] if index else 0
            code = self._library.octavo_program_run(self._handle, first, self._ends[index], num_rows)
            check(self._library, code, f"running {recording.instructions[index].op}")

        def view(value: Value) -> FloatArray:
            (slot,) = slots(self.plan, (value,))
            data = self._library.octavo_program_data(self._handle, slot)
            return np.ctypeslib.as_array(data, (num_rows, value.stride))[:, : value.width]

        recording.run_again(OpByOp(recording.instructions, run, view, see), map(view, recording.given))


class _Emitter:
    """Appends instructions to one C++ program. ops: the op name of each of its instructions."""

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
        self._values: dict[AttentionLayer, HostTensor] = {}  # of latents, until their op comes

    def emit(self, instruction: Instruction) -> None:
        places = slots(self._plan, (*instruction.inputs, *instruction.outputs))
        if instruction.op == "linear":
            x, out = places
            return self._linear(x, out, instruction.arguments["weight"])
        if instruction.op == "mixture":
            layer = instruction.arguments["layer"]
            given = (self._library, self._pool, self._program, self._weights, layer, self._activation_bytes)
            packed = pack_mixture(*given, self._weights.placed)
            self._append("append_mixture", "mixture", packed, *places)
            return
        if instruction.op in ("latent_kv_write", "latent_values"):
            self._heads(instruction.arguments["layer"], instruction.op, places[0], places[-1])
            if instruction.op == "latent_values":
                return
        kinds = OPS[instruction.op].kinds
        values = [each for name, kind in kinds.items() for each in self._arguments(kind, instruction.arguments[name])]
        self._append("append", instruction.op, instruction.op.encode(), places, len(places), byref(Arguments(*values)))

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

    def _heads(self, layer: AttentionLayer, op: str, x: Slot, out: Slot) -> None:
        """The products with each head's own matrix. The two ops share what is read for the first."""
        assert layer.latent is not None, "the op is one of latents"
        if op == "latent_kv_write":
            matrices, self._values[layer] = head_matrices(layer.latent, self._weights)
        else:
            kept = self._values.pop(layer) if layer in self._values else None
            matrices = kept or head_matrices(layer.latent, self._weights)[1]
        count, rows, cols = matrices.shape
        self._append(
            *("append_head_products", op, self._pool.handle, DTYPES.index(matrices.dtype)),
            *(address(matrices.data), count, rows, cols, matrices.data.nbytes // count),
            *(x.width // count, out.width // count, x, out),
        )

    def _append(self, function: str, op: str, *arguments: Any) -> None:
        code = getattr(self._library, f"octavo_program_{function}")(self._program, *arguments)
        check(self._library, code, f"compiling {op} for the cpu backend")
        self.ops.append(op)

    def _arguments(self, kind: str, value: Any) -> list[Argument]:
        """A parameter of this kind in the form that C++ takes."""
        if kind == "float":
            return [Argument(real=value)]
        if kind == "int":
            return [Argument(whole=value)]
        if kind in WORDS:
            return [Argument(whole=WORDS[kind].index(value))]
        if isinstance(value, AdaptedModule):
            return [Argument(address=addressof(self._weights.adapters.spec(value)))]
        if isinstance(value, AttentionLayer):
            return [Argument(address=addressof(self._spec(value)))]
        if value is not None and len(value.shape) == 2:
            table = self._weights.table(value)
            whole = (DTYPES.index(table.dtype), address(table.data), table.rows, table.row_bytes)
            return [Argument(whole=each) for each in whole]
        return [Argument(address=self._vector(value))]

    def _spec(self, layer: AttentionLayer) -> LayerSpec:
        """The layer's spec; all ops of its attention share one."""
        if (made := self._weights.specs.get(layer)) is not None:
            return made
        rotary = layer.rotary
        angles = (None, None) if rotary is None else map(self._weights.borrow, (rotary.cos, rotary.sin))
        spec = self._weights.specs[layer] = LayerSpec(
            *(layer.group, self._kv.layer_offset(layer), layer.num_heads, layer.num_kv_heads, layer.head_dim),
            *(layer.scale, layer.window or 0, layer.is_causal, layer.softcap or 0.0),
            *(self._vector(layer.q_norm), self._vector(layer.k_norm), layer.norm_eps),
            *(*angles, rotary.rotary_dim if rotary else 0),
            *((None, None) if self._kv.dtype not in LARGEST_CODE else map(self._weights.borrow, kv_scales(layer))),
            self._vector(layer.sinks),
            *((None, 0) if layer.bias is None else self._weights.bias(layer.bias)),
            *((0, 0) if layer.latent is None else (layer.latent.rank, layer.latent.interleaves)),
        )
        return spec

    def _vector(self, parameter: Parameter | None) -> int | None:
        return None if parameter is None else self._weights.vector(parameter)
