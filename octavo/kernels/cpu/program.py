"""CpuProgram: a recording in C++, where it runs as a whole. Here one can time its ops, or run it op by op."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from typing import Literal

import numpy as np

from octavo.kernels.cpu.emit import Emitter, slots
from octavo.kernels.cpu.library import ThreadPool, address, check
from octavo.kernels.cpu.weights import CpuWeights
from octavo.kernels.kv_layout import KVLayout
from octavo.kernels.ops import FloatArray
from octavo.kernels.program.recorder import OpByOp, Recording, See, Value, share_buffers


class CpuProgram:
    """The C++ model owns the instructions; this knows them by the recording's order."""

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
        emitter = Emitter(library, threads, self._handle, self.plan, kv, weights, activation_bytes)
        self._ends = []  # of each recorded instruction, among C++'s
        for instruction in recording.instructions:
            emitter.emit(instruction)
            self._ends.append(len(emitter.ops))
        self._ops = emitter.ops

    def times(self) -> list[tuple[str, int, float]]:
        """Of each instruction in C++: its op, how often it ran, seconds."""
        seconds, calls = (ctypes.c_double * len(self._ops))(), (c_int64 * len(self._ops))()
        self._library.octavo_program_times(self._handle, seconds, calls)
        return list(zip(self._ops, calls, seconds, strict=True))

    def run_op_by_op(self, num_rows: int) -> None:
        """Where there is a `see`, after the C++ model began a step of so many rows."""
        assert self._traced is not None, "a program that nobody sees runs as a whole"
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
