"""A packed weight and the threads that multiply by it, without a model: for kernel tests and benchmarks.

The C interface is csrc/bindings/matmul.cpp; models reach the same kernels through a compiled program.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int32, c_int64, c_void_p

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.tensor import DTYPES, DType, HostTensor

FloatArray = NDArray[np.float32]


class KernelThreads:
    """A thread pool of the library, freed by `close`."""

    def __init__(self, library: ctypes.CDLL, num_threads: int) -> None:
        self.library = library
        self.handle = c_void_p(_function(library, "octavo_start_threads", c_void_p)(c_int32(num_threads)))

    def close(self) -> None:
        self.library.octavo_stop_threads(self.handle)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Keeps the workers awake."""
        session = c_void_p(_function(self.library, "octavo_begin_session", c_void_p)(self.handle))
        try:
            yield
        finally:
            self.library.octavo_end_session(session)

    def count_loops(self, count: int, grain: int, times: int) -> NDArray[np.int64]:
        """Run `times` loops over [0, count); how often each index was visited."""
        counters = np.zeros(count, np.int64)
        sizes = (c_int64(count), c_int64(grain), c_int64(times))
        self.library.octavo_count_loops(self.handle, *sizes, _pointer(counters))
        return counters


class PackedMatrix:
    """A weight in the kernels' packed format; the tensor can be freed afterwards."""

    def __init__(self, threads: KernelThreads, weight: HostTensor, activation_bytes: int = 1) -> None:
        self.library = threads.library
        self.rows, self.cols = weight.rows, weight.cols
        shape = (c_int64(self.rows), c_int64(self.cols))
        dtype = c_int32(DTYPES.index(weight.dtype))
        pack = _function(self.library, "octavo_pack", c_void_p)
        handle = pack(threads.handle, dtype, _pointer(weight.data), *shape, c_int32(activation_bytes))
        assert handle is not None, f"there is no kernel for {weight.dtype}"
        self.handle = c_void_p(handle)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.library.octavo_free_matrix(self.handle)

    @property
    def packed_bytes(self) -> int:
        return int(_function(self.library, "octavo_packed_bytes", c_int64)(self.handle))

    def scratch(self, num_tokens: int) -> NDArray[np.uint8]:
        """Scratch memory for `multiply`."""
        size = int(_function(self.library, "octavo_scratch_bytes", c_int64)(self.handle, c_int64(num_tokens)))
        raw = np.empty(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + size]

    def multiply(
        self,
        threads: KernelThreads,
        x: FloatArray,
        y: FloatArray,
        scratch: NDArray[np.uint8],
        bias: FloatArray | None = None,
    ) -> None:
        """y = x W^T + bias. Rows of x and y may be parts of longer ones."""
        self.library.octavo_multiply(
            threads.handle,
            self.handle,
            _pointer(x),
            c_int64(x.strides[0] // x.itemsize),
            c_int64(len(x)),
            None if bias is None else _pointer(bias),
            _pointer(y),
            c_int64(y.strides[0] // y.itemsize),
            _pointer(scratch),
        )


def dequantize_row(library: ctypes.CDLL, dtype: DType, row: NDArray[np.uint8], cols: int) -> FloatArray:
    """One row's float32 values, as embeddings read them."""
    out = np.empty(cols, np.float32)
    library.octavo_dequantize(c_int32(DTYPES.index(dtype)), _pointer(row), c_int64(cols), _pointer(out))
    return out


def _function(library: ctypes.CDLL, name: str, result: type[c_void_p] | type[c_int64]) -> ctypes._NamedFuncPointer:
    """A library function with its result type: ctypes assumes int."""
    function = getattr(library, name)
    function.restype = result
    return function  # type: ignore[no-any-return]


def _pointer(array: NDArray[np.generic]) -> c_void_p:
    return c_void_p(array.ctypes.data)
