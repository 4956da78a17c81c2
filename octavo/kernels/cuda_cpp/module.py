"""Loads and launches compiled kernels through the CUDA driver, which needs no compiler and no torch headers."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import Structure, byref, c_char, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from functools import lru_cache

_MAX_DYNAMIC_SHARED_BYTES, _SHARED_CARVEOUT = 8, 9  # CUfunction_attribute
_CHAINED = 6  # CUlaunchAttributeID: programmatic stream serialization
_BYTES, _WORDS, _FP16, _BF16 = 0, 2, 6, 9  # CUtensorMapDataType
_SWIZZLE_64_BYTES, _SWIZZLE_128_BYTES = 2, 3
_PROMOTE_TO_256_BYTES = 3
_NO_CONTEXT = 201  # CUresult


class _Attribute(Structure):
    _fields_ = (("id", c_int), ("padding", c_int), ("value", c_int * 16))


class _Config(Structure):
    _fields_ = (
        *((name, c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_bytes")),
        ("stream", c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", c_uint),
    )


class TensorMap(Structure):
    """Describes a matrix in global memory to the copy engine, in 128 bytes that only the driver understands. A box
    begins at a multiple of 16 bytes of a row, and comes to one of 128."""

    _fields_ = (("content", c_char * 128),)

    @classmethod
    def of_rows(cls, address: int, num_rows: int, dim: int, *, is_half: bool, box_rows: int, box_dim: int) -> TensorMap:
        """[num_rows, dim] of 16-bit elements, read in boxes that are swizzled by 128 bytes."""
        return cls._of(_FP16 if is_half else _BF16, address, (dim, num_rows), (dim * 2,), (box_dim, box_rows))

    @classmethod
    def of_codes(cls, address: int, num_rows: int, dim: int, *, box_rows: int) -> TensorMap:
        """[num_rows, dim] bytes, read in boxes of [box_rows, 128] that are swizzled by 128 bytes."""
        return cls._of(_BYTES, address, (dim, num_rows), (dim,), (128, box_rows))

    @classmethod
    def of_units(cls, address: int, num_rows: int, dim: int, *, box_rows: int, box_dim: int) -> TensorMap:
        """[num_rows, dim] bytes, read in boxes of [box_rows, box_dim]. Those of 128 bytes are swizzled by as many."""
        swizzle = _SWIZZLE_128_BYTES if box_dim == 128 else 0
        return cls._of(_BYTES, address, (dim, num_rows), (dim,), (box_dim, box_rows), swizzle=swizzle)

    @classmethod
    def of_words(cls, address: int, num_rows: int, dim: int, *, box_rows: int, box_dim: int) -> TensorMap:
        """[num_rows, dim] of 32 bits each, read in boxes as they lie."""
        return cls._of(_WORDS, address, (dim, num_rows), (dim * 4,), (box_dim, box_rows), swizzle=0)

    @classmethod
    def of_lines(cls, address: int, num_rows: int, dim: int, *, box_rows: int, box_lines: int) -> TensorMap:
        """[num_rows, dim] bytes as [num_rows, lines, 128], read in boxes of [box_rows, box_lines, 128] that are
        swizzled by 128 bytes."""
        return cls._of(_BYTES, address, (128, dim // 128, num_rows), (128, dim), (128, box_lines, box_rows))

    @classmethod
    def of_panels(cls, address: int, num_rows: int, dim: int, *, box_rows: int, box_panels: int) -> TensorMap:
        """[num_rows, dim] bytes as [panels, num_rows, 64], read in boxes of [box_panels, box_rows, 64] that are
        swizzled by 64 bytes."""
        dims, strides, box = (64, num_rows, dim // 64), (dim, 64), (64, box_rows, box_panels)
        return cls._of(_BYTES, address, dims, strides, box, swizzle=_SWIZZLE_64_BYTES)

    @classmethod
    def of_bytes(cls, address: int, shape: tuple[int, int, int], box_rows: int) -> TensorMap:
        """[halves, rows, bytes], read in boxes of [halves, box_rows, 128] that are swizzled by 128 bytes."""
        halves, num_rows, dim = shape
        return cls._of(_BYTES, address, (dim, num_rows, halves), (dim, dim * num_rows), (128, box_rows, halves))

    @classmethod
    def of_stack(
        cls, address: int, shape: tuple[int, int, int], *, box_rows: int, box_spans: int, box_matrices: int
    ) -> TensorMap:
        """[matrices, rows, bytes], read in boxes of [box_matrices, box_spans, box_rows, 128] that are swizzled by 128
        bytes. What a row's last span has beyond it is read from the next row."""
        matrices, num_rows, dim = shape
        dims, strides = (128, num_rows, -(-dim // 128), matrices), (dim, 128, dim * num_rows)
        return cls._of(_BYTES, address, dims, strides, (128, box_rows, box_spans, box_matrices))

    @classmethod
    def of_dealt(cls, address: int, num_rows: int, dim: int) -> TensorMap:
        """[rows, bytes], read in boxes of 128 rows and 128 bytes that are swizzled by 128 bytes. Of 32 rows, row
        8 q + 2 j + b comes to place 8 j + 2 q + b."""
        dims, strides = (dim, 2, 4, 4, num_rows // 32), (dim, 8 * dim, 2 * dim, 32 * dim)
        return cls._of(_BYTES, address, dims, strides, (128, 2, 4, 4, 4))

    @classmethod
    def _of(
        cls, kind: int, address: int, dims: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], *,
        swizzle: int = _SWIZZLE_128_BYTES,
    ) -> TensorMap:  # fmt: skip
        """strides: in bytes, of all dimensions but the first."""
        buffer = (c_char * 192)()  # with room to align the map to 64 bytes
        at, rank = -ctypes.addressof(buffer) % 64, len(dims)
        check(
            cuda_driver().cuTensorMapEncodeTiled(
                byref(buffer, at), kind, rank, c_void_p(address), (c_uint64 * rank)(*dims),
                (c_uint64 * (rank - 1))(*strides), (c_uint32 * rank)(*box), (c_uint32 * rank)(*[1] * rank), 0,
                swizzle, _PROMOTE_TO_256_BYTES, 0,
            ),
            "describing a matrix to the copy engine",
        )  # fmt: skip
        return cls.from_buffer_copy(buffer, at)


_is_rehearsing = False


@contextmanager
def launch_nothing() -> Iterator[None]:
    """Make launches do nothing, for rehearsals, in which the kernels that they depend on do not run either."""
    global _is_rehearsing
    _is_rehearsing = True
    try:
        yield
    finally:
        _is_rehearsing = False


class Kernel:
    """One kernel of a cubin, loaded into the current CUDA context."""

    def __init__(self, cubin: bytes, name: str) -> None:
        driver = cuda_driver()
        self._module, self._function, self._context = c_void_p(), c_void_p(), c_void_p()
        driver.cuCtxGetCurrent(byref(self._context))
        check(driver.cuModuleLoadData(byref(self._module), cubin), f"loading {name}")
        check(driver.cuModuleGetFunction(byref(self._function), self._module, name.encode()), f"finding {name}")

    def number(self, name: str) -> int:
        """The value of an int variable in the cubin."""
        address, size, value = c_void_p(), c_size_t(), c_int()
        driver = cuda_driver()
        check(driver.cuModuleGetGlobal_v2(byref(address), byref(size), self._module, name.encode()), f"finding {name}")
        check(driver.cuMemcpyDtoH_v2(byref(value), address, c_size_t(4)), f"reading {name}")
        return value.value

    def allow_shared(self, num_bytes: int) -> None:
        """Allow this much dynamic shared memory per thread block."""
        check(
            cuda_driver().cuFuncSetAttribute(self._function, _MAX_DYNAMIC_SHARED_BYTES, num_bytes),
            f"asking for {num_bytes:,} bytes of shared memory",
        )

    def prefer_shared(self) -> None:
        """Have multiprocessors give all their memory to thread blocks: kernels whose blocks share one want that alike,
        since it is not divided anew until all have ended."""
        check(cuda_driver().cuFuncSetAttribute(self._function, _SHARED_CARVEOUT, 100), "preferring shared memory")

    def take_shared(self) -> int:
        """Allow, and prefer, the shared memory that its source says a thread block needs -> the bytes."""
        num_bytes = self.number("octavo_shared_bytes")
        self.allow_shared(num_bytes)
        self.prefer_shared()
        return num_bytes

    def launch(
        self, grid: int, block: int, arguments: tuple[Structure | ctypes.Array[TensorMap], ...], *, shared_bytes: int,
        stream: int, chained: bool, grid_y: int = 1,
    ) -> None:  # fmt: skip
        """arguments: what the kernel takes by value."""
        if _is_rehearsing:
            return
        attribute = _Attribute(_CHAINED)
        attribute.value[0] = 1
        config = _Config(grid, grid_y, 1, block, 1, 1, shared_bytes, stream, ctypes.pointer(attribute), int(chained))
        addresses = (c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        driver = cuda_driver()
        code = driver.cuLaunchKernelEx(byref(config), self._function, addresses, None)
        if code == _NO_CONTEXT:  # this thread has not used the GPU yet
            driver.cuCtxSetCurrent(self._context)
            code = driver.cuLaunchKernelEx(byref(config), self._function, addresses, None)
        check(code, "launching a kernel")


@lru_cache
def cuda_driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def check(code: int, doing: str) -> None:
    if code:
        name = ctypes.c_char_p()
        cuda_driver().cuGetErrorString(code, byref(name))
        raise RuntimeError(f"{doing}: {(name.value or b'unknown error').decode()} (CUDA driver error {code})")
