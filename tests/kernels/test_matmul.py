"""Packed matrices by themselves: every dtype, every build, against numpy.

What is claimed, and so tested:
- dequantisation is the gguf package's, bit for bit;
- dense products differ from float64 ones by float32 rounding only;
- quantised products differ by float32 rounding from exact weights times activations rounded to 8 bits, and so from
  unrounded activations by no more than `Ops.linear` allows;
- a token's output is the same bits whatever the other tokens, their number and the threads.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from octavo.kernels.tensor import BLOCK_FORMATS, DENSE_DTYPES, DTYPES, DType

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = [
    *(CSRC / "cpu" / f"{name}.cpp" for name in ("thread_pool", "dequantize", "pack", "packed_memory", "matmul")),
    *(CSRC / "cpu" / f"matmul_{kind}.cpp" for kind in ("dense", "quantized", "k_quantized")),
    CSRC / "bindings" / "matmul.cpp",
]
QUANTIZED_DTYPES = [dtype for dtype in DTYPES if dtype not in DENSE_DTYPES]

#: where a block's fp16 numbers lie
HALVES: dict[DType, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


def compile_library(isa: str, folder: Path) -> Path:
    objects = []
    running = []
    for source in SOURCES:
        objects.append(folder / f"{source.parent.name}-{source.stem}.o")
        flags = ["-std=c++17", "-O3", "-fPIC", f"-march={isa}", f"-I{CSRC / 'include'}"]
        running.append(subprocess.Popen(["g++", *flags, "-c", str(source), "-o", str(objects[-1])]))
    assert [process.wait() for process in running] == [0] * len(running)
    library = folder / "matmul.so"
    subprocess.run(["g++", "-shared", "-pthread", *map(str, objects), "-o", str(library)], check=True)
    return library


class Library:
    """The extern "C" functions of csrc/bindings/matmul.cpp, and a pool of two threads."""

    def __init__(self, path: Path, num_threads: int = 2) -> None:
        self.c = ctypes.CDLL(str(path))
        for name in ("octavo_start_threads", "octavo_pack", "octavo_begin_session"):
            getattr(self.c, name).restype = ctypes.c_void_p
        for name in ("octavo_packed_bytes", "octavo_scratch_bytes"):
            getattr(self.c, name).restype = ctypes.c_int64
        self.pool = self.start_threads(num_threads)

    def start_threads(self, num_threads: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.c.octavo_start_threads(num_threads))

    def stop_threads(self, pool: ctypes.c_void_p) -> None:
        self.c.octavo_stop_threads(pool)

    def dequantize(self, dtype: DType, rows: ByteArray, cols: int) -> FloatArray:
        out = np.empty((len(rows), cols), np.float32)
        for row, values in zip(rows, out, strict=True):
            self.c.octavo_dequantize(DTYPES.index(dtype), pointer(row), ctypes.c_int64(cols), pointer(values))
        return out

    def count_loops(self, pool: ctypes.c_void_p, count: int, grain: int, times: int) -> NDArray[np.int64]:
        counters = np.zeros(count, np.int64)
        args = (ctypes.c_int64(value) for value in (count, grain, times))
        self.c.octavo_count_loops(pool, *args, pointer(counters))
        return counters


class Matrix:
    """A PackedMatrix, freed with this object."""

    def __init__(self, library: Library, dtype: DType, rows: ByteArray, cols: int) -> None:
        self.library = library
        self.shape = (len(rows), cols)
        args = (ctypes.c_int64(len(rows)), ctypes.c_int64(cols))
        handle = library.c.octavo_pack(library.pool, DTYPES.index(dtype), pointer(rows), *args)
        assert handle is not None, f"{dtype} is not implemented"
        self.handle = ctypes.c_void_p(handle)

    def __del__(self) -> None:
        self.library.c.octavo_free_matrix(self.handle)

    def multiply(
        self, x: FloatArray, bias: FloatArray | None = None, pool: ctypes.c_void_p | None = None
    ) -> FloatArray:
        """x may be a view with a longer stride; so is y, and what lies past its rows must stay untouched."""
        num_tokens = ctypes.c_int64(len(x))
        scratch = aligned_bytes(self.library.c.octavo_scratch_bytes(self.handle, num_tokens))
        y = np.full((len(x), self.shape[0] + 3), np.nan, np.float32)
        self.library.c.octavo_multiply(
            pool or self.library.pool,
            self.handle,
            pointer(x),
            ctypes.c_int64(x.strides[0] // 4),
            num_tokens,
            None if bias is None else pointer(bias),
            pointer(y),
            ctypes.c_int64(y.shape[1]),
            pointer(scratch),
        )
        assert np.isnan(y[:, self.shape[0] :]).all()
        return y[:, : self.shape[0]]


def pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def aligned_bytes(size: int) -> ByteArray:
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


@pytest.fixture(scope="module", params=["native", "x86-64-v3", "x86-64"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    library = Library(compile_library(request.param, tmp_path_factory.mktemp(request.param)))
    yield library
    library.stop_threads(library.pool)


def random_weights(dtype: DType, rows: int, cols: int, seed: int = 0) -> ByteArray:
    """Rows as a file holds them. Quantised ones are random bits, scales apart: so every code occurs."""
    rng = np.random.default_rng(seed)
    if dtype in DENSE_DTYPES:
        values = rng.standard_normal((rows, cols), np.float32)
        if dtype == "F16":
            return values.astype(np.float16).view(np.uint8)
        if dtype == "BF16":
            return np.ascontiguousarray(values.view(np.uint16)[:, 1::2]).view(np.uint8)
        return values.view(np.uint8)
    block_len, block_bytes = BLOCK_FORMATS[dtype]
    blocks = rng.integers(0, 256, (rows, cols // block_len, block_bytes), np.uint8)
    for at in HALVES[dtype]:
        scales = (rng.standard_normal(blocks.shape[:2]) * 0.01).astype(np.float16)
        blocks[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def exact_weights(dtype: DType, rows: ByteArray) -> FloatArray:
    return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[dtype])


def random_activations(tokens: int, cols: int, seed: int = 1) -> FloatArray:
    """A view into wider rows, of very different magnitudes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, cols + 5)) * np.exp(rng.standard_normal((tokens, 1)))
    return x.astype(np.float32)[:, :cols]


def rounded_activations(x: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x to 8 bits per 32 columns; and the doubt, where it depends on a fused multiplication which way a number goes."""
    runs = x.reshape(len(x), -1, 32)
    largest = np.abs(runs).max(axis=2, keepdims=True)
    inverse = np.float32(127) / largest
    separate, fused = np.rint(runs * inverse), np.rint(runs.astype(np.float64) * inverse)
    step = (largest / np.float32(127)).astype(np.float64)
    return (fused * step).reshape(x.shape), (np.abs(fused - separate) * step).reshape(x.shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize_agrees_with_gguf_bit_for_bit(library: Library, dtype: DType) -> None:
    rows = random_weights(dtype, 7, 768)
    np.testing.assert_array_equal(
        library.dequantize(dtype, rows, 768).view(np.uint32), exact_weights(dtype, rows).view(np.uint32)
    )


def test_dequantize_every_half(library: Library) -> None:
    halves = np.arange(65536, dtype=np.uint16)
    halves = halves[np.isfinite(halves.view(np.float16)) | (halves & 0x3FF == 0)]
    out = library.dequantize("F16", halves.view(np.uint8)[None], len(halves))
    np.testing.assert_array_equal(out[0], halves.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (37, 61), (64, 576), (50, 1000)])
@pytest.mark.parametrize("dtype", sorted(DENSE_DTYPES))
def test_dense_product(library: Library, dtype: DType, shape: tuple[int, int]) -> None:
    rows = random_weights(dtype, *shape)
    weights = exact_weights(dtype, rows).astype(np.float64)
    matrix = Matrix(library, dtype, rows, shape[1])
    bias = np.linspace(-3, 3, shape[0], dtype=np.float32)
    for tokens in (1, 2, 3, 7, 8, 16, 33, 512):
        x = random_activations(tokens, shape[1])
        magnitude = np.abs(x.astype(np.float64)) @ np.abs(weights).T
        np.testing.assert_array_less(
            np.abs(matrix.multiply(x, bias) - (x.astype(np.float64) @ weights.T + bias)), 1e-6 * magnitude + 1e-6
        )


@pytest.mark.parametrize("shape", [(37, 256), (72, 768), (5, 1536)])
@pytest.mark.parametrize("dtype", QUANTIZED_DTYPES)
def test_quantized_product(library: Library, dtype: DType, shape: tuple[int, int]) -> None:
    rows = random_weights(dtype, *shape)
    weights = exact_weights(dtype, rows).astype(np.float64)
    matrix = Matrix(library, dtype, rows, shape[1])
    bias = np.linspace(-3, 3, shape[0], dtype=np.float32)
    for tokens in (1, 2, 3, 7, 8, 16, 33, 512):
        x = random_activations(tokens, shape[1])
        y = matrix.multiply(x, bias)
        rounded, doubt = rounded_activations(x)
        float_error = 1e-6 * np.abs(rounded) @ np.abs(weights).T + 1e-6
        np.testing.assert_array_less(np.abs(y - (rounded @ weights.T + bias)), float_error + doubt @ np.abs(weights).T)
        largest = np.abs(x).reshape(tokens, -1, 32).max(axis=2).repeat(32, axis=1).astype(np.float64)
        allowed = (largest / 254) @ np.abs(weights).T
        np.testing.assert_array_less(np.abs(y - (x @ weights.T + bias)), allowed + float_error)


@pytest.mark.parametrize("dtype", DTYPES)
def test_output_does_not_depend_on_the_batch(library: Library, dtype: DType) -> None:
    matrix = Matrix(library, dtype, random_weights(dtype, 203, 512), 512)
    x = random_activations(64, 512)
    together = matrix.multiply(x)
    for tokens in (1, 2, 5, 11, 64):
        np.testing.assert_array_equal(matrix.multiply(x[-tokens:]), together[-tokens:])
    for num_threads in (1, 3):
        pool = library.start_threads(num_threads)
        np.testing.assert_array_equal(matrix.multiply(x, pool=pool), together)
        library.stop_threads(pool)


@pytest.mark.parametrize("dtype", ["F32", "Q4_1", "Q6_K"])
def test_numbers_that_are_not_finite_reach_the_output(library: Library, dtype: DType) -> None:
    matrix = Matrix(library, dtype, random_weights(dtype, 16, 256), 256)
    x = random_activations(3, 256)
    clean = matrix.multiply(x)
    x[1, 70] = np.nan
    spoiled = matrix.multiply(x)
    assert np.isnan(spoiled[1]).all()
    np.testing.assert_array_equal(spoiled[[0, 2]], clean[[0, 2]])
    x[1, 70] = np.inf
    assert not np.isfinite(matrix.multiply(x)[1]).any()


@pytest.mark.parametrize("dtype", QUANTIZED_DTYPES)
def test_extremes_do_not_overflow(library: Library, dtype: DType) -> None:
    """All ones in every code, activations all of the largest magnitude."""
    rows = np.full_like(random_weights(dtype, 16, 256), 255)
    if dtype == "Q8_0":
        rows[:] = 0x80
    for at in HALVES[dtype]:
        block_bytes = BLOCK_FORMATS[dtype][1]
        rows.reshape(16, -1, block_bytes)[:, :, at : at + 2] = np.array([1], np.float16).view(np.uint8)
    x = np.where(np.arange(256) % 64 < 32, -3, 3).astype(np.float32)[None]
    x[0, 100:200] = 3
    weights = exact_weights(dtype, rows).astype(np.float64)
    np.testing.assert_allclose(Matrix(library, dtype, rows, 256).multiply(x), x @ weights.T, rtol=1e-6)


def test_zero_activations_give_the_bias(library: Library) -> None:
    matrix = Matrix(library, "Q4_1", random_weights("Q4_1", 9, 64), 64)
    bias = np.arange(9, dtype=np.float32)
    x = np.zeros((3, 64), np.float32)
    np.testing.assert_array_equal(matrix.multiply(x, bias), np.tile(bias, (3, 1)))
    x[1] = 1e-35
    np.testing.assert_allclose(matrix.multiply(x, bias), np.tile(bias, (3, 1)), atol=1e-30)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_loop_visits_everything_once(library: Library, num_threads: int) -> None:
    pool = library.start_threads(num_threads)
    for in_session in (False, True):
        session = ctypes.c_void_p(library.c.octavo_begin_session(pool)) if in_session else None
        for count, grain in ((1, 1), (7, 10), (100, 1), (1000, 16)):
            np.testing.assert_array_equal(library.count_loops(pool, count, grain, 200), 200)
        np.testing.assert_array_equal(library.count_loops(pool, 0, 1, 1), [])
        if session is not None:
            library.c.octavo_end_session(session)
    library.stop_threads(pool)
