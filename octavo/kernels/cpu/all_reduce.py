"""AllReduce: lets the C++ program add up its ranks' results, by a call back into Python.

    C++ program  linear | all_reduce ──▶ here ──▶ gloo, on the same memory ──▶ back | add_rms_norm | ...

A step stays one call into C++. An exception cannot cross C++, so it waits here until that call has returned.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from octavo.kernels.cpu.library import AllReduceCall, check

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives


class AllReduce:
    """As long as it lives, C++ may call it."""

    def __init__(self, library: ctypes.CDLL, model: ctypes.c_void_p, ranks: Collectives) -> None:
        self._library = library
        self._fault: Exception | None = None

        def add_up(address: int, count: int) -> int:
            try:
                ranks.all_reduce_floats(address, count)
            except Exception as fault:
                self._fault = fault
            return int(self._fault is not None)

        self._call = AllReduceCall(add_up)
        library.octavo_model_join_ranks(model, self._call)

    def check(self, code: int, what: str) -> None:
        """Raise what went wrong in a call into C++ that returned this code."""
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault
        check(self._library, code, what)
