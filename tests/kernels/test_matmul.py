"""Packed matrices alone: every dtype, every build, against numpy.

What the kernels promise, and these tests check:
- dequantisation is the gguf package's, bit for bit;
- dense products differ from float64 ones by float32 rounding only;
- quantised products differ by float32 rounding from exact weights times activations rounded to 8 or 15 bits, and so
  from unrounded activations by no more than `Ops.linear` allows, or a 128th of it;
- a token's output has the same bits, whatever the other tokens, their number and the number of threads.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from octavo import env
from octavo.kernels.build import build
from octavo.kernels.build.toolchain import find_toolchain
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.tensor import BLOCK_FORMATS, DENSE_DTYPES, DTYPES, DType, HostTensor
from tests.kernels.packed_matrix import KernelThreads, PackedMatrix, dequantize_row

CSRC = Path(__file__).parents[2] / "csrc"
QUANTIZED_DTYPES = [dtype for dtype in DTYPES if dtype not in DENSE_DTYPES]

FLOAT8 = ("F8_32", "F8_128")
INTEGER_DTYPES = [dtype for dtype in QUANTIZED_DTYPES if dtype not in FLOAT8]
CODED = ("I8_32", "I8_128", "U4_32", "U4_128", "E2M1_32", *FLOAT8)

#: where a block's scales lie; they are float32 in coded formats, else float16
SCALES: dict[DType, tuple[int, ...]] = {
    **dict.fromkeys(CODED, (0,)),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "MXFP4": (),
}

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


@pytest.fixture(scope="module", params=["native", "avx2", "generic"])
def threads(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelThreads]:
    """Two threads of a build for each instruction set; of all but the processor's own, of these kernels alone."""
    isa: env.CpuIsa = request.param
    library = build.load() if isa == "native" else matmul_alone(isa, tmp_path_factory.mktemp("sources"))
    threads = KernelThreads(library, 2)
    yield threads
    threads.close()


def matmul_alone(isa: env.CpuIsa, sources: Path) -> ctypes.CDLL:
    """The others would take longer to compile than these."""
    needed = ("*.h", "matmul*.cpp", "*pack*.cpp", "dequantize.cpp", "convert.cpp", "thread_pool.cpp")
    shutil.copytree(CSRC / "include", sources / "include")
    for folder, patterns in {"cpu": needed, "bindings": ("matmul.cpp",)}.items():
        (sources / folder).mkdir()
        for path in (path for pattern in patterns for path in (CSRC / folder).glob(pattern)):
            shutil.copy(path, sources / folder)
    toolchain = find_toolchain(isa, env.cxx(), sanitizes=env.sanitizes_kernels())
    library = env.cache_dir() / build.library_path(sources, toolchain, isa)
    build.build(sources, toolchain, isa, library)
    return ctypes.CDLL(str(library))


def pack(threads: KernelThreads, dtype: DType, rows: ByteArray, cols: int, activation_bytes: int = 1) -> PackedMatrix:
    return PackedMatrix(threads, HostTensor(dtype, (len(rows), cols), rows.reshape(-1)), activation_bytes)


def multiply(threads: KernelThreads, matrix: PackedMatrix, x: FloatArray, bias: FloatArray | None = None) -> FloatArray:
    """Into rows longer than the output; their ends must stay unchanged."""
    y = np.full((len(x), matrix.rows + 3), np.nan, np.float32)
    matrix.multiply(threads, x, y, matrix.scratch(len(x)), bias)
    assert np.isnan(y[:, matrix.rows :]).all()
    return y[:, : matrix.rows]


def random_weights(dtype: DType, rows: int, cols: int, seed: int = 0) -> ByteArray:
    """Rows as in a file. Quantised ones are random bits, except for the scales, so every code occurs."""
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
    if dtype in FLOAT8:
        blocks[blocks & 0x7F == 0x7F] = 0x11  # no number
    if dtype == "MXFP4":
        blocks[:, :, 0] = rng.integers(110, 126, blocks.shape[:2])  # exponents
    for at in SCALES[dtype]:
        scales = (rng.standard_normal(blocks.shape[:2]) * 0.01).astype(scale_type(dtype))
        blocks[:, :, at : at + scales.itemsize] = scales[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def scale_type(dtype: DType) -> type[np.floating]:
    return np.float32 if dtype in CODED else np.float16


def exact_weights(dtype: DType, rows: ByteArray) -> FloatArray:
    """Coded formats are ours: the reference reads them, which `tests/quantization` compares."""
    if dtype in CODED:
        block_len, block_bytes = BLOCK_FORMATS[dtype]
        return dequantize(HostTensor(dtype, (len(rows), rows.shape[1] // block_bytes * block_len), rows.reshape(-1)))
    return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[dtype])


def random_activations(tokens: int, cols: int, seed: int = 1) -> FloatArray:
    """A view into wider rows, of very different magnitudes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, cols + 5)) * np.exp(rng.standard_normal((tokens, 1)))
    return x.astype(np.float32)[:, :cols]


#: steps that the largest magnitude of 32 activations is divided into, by the bytes that each is rounded to
STEPS = {1: 127, 2: 127 * 128}
BFLOAT16 = 3  # to bfloat16, in place of so many bytes


def rounded_activations(x: FloatArray, num_bytes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x rounded to the steps of each 32 columns; and the uncertainty where a fused multiplication decides which way a
    number is rounded."""
    runs = x.reshape(len(x), -1, 32)
    largest = np.abs(runs).max(axis=2, keepdims=True)
    inverse = np.float32(STEPS[num_bytes]) / largest
    separate, fused = np.rint(runs * inverse), np.rint(runs.astype(np.float64) * inverse)
    step = (largest / np.float32(STEPS[num_bytes])).astype(np.float64)
    return (fused * step).reshape(x.shape), (np.abs(fused - separate) * step).reshape(x.shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize_agrees_with_gguf_bit_for_bit(threads: KernelThreads, dtype: DType) -> None:
    rows = random_weights(dtype, 7, 768)
    values = np.stack([dequantize_row(threads.library, dtype, row, 768) for row in rows])
    np.testing.assert_array_equal(values.view(np.uint32), exact_weights(dtype, rows).view(np.uint32))


def test_dequantize_every_half(threads: KernelThreads) -> None:
    halves = np.arange(65536, dtype=np.uint16)
    values = dequantize_row(threads.library, "F16", halves.view(np.uint8), len(halves))
    np.testing.assert_array_equal(values, halves.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (37, 61), (64, 576), (50, 1000)])
@pytest.mark.parametrize("dtype", sorted(DENSE_DTYPES))
def test_dense_product(threads: KernelThreads, dtype: DType, shape: tuple[int, int]) -> None:
    rows = random_weights(dtype, *shape)
    weights = exact_weights(dtype, rows).astype(np.float64)
    matrix = pack(threads, dtype, rows, shape[1])
    bias = np.linspace(-3, 3, shape[0], dtype=np.float32)
    for tokens in (1, 2, 3, 7, 8, 16, 33, 512):
        x = random_activations(tokens, shape[1])
        magnitude = np.abs(x.astype(np.float64)) @ np.abs(weights).T
        np.testing.assert_array_less(
            np.abs(multiply(threads, matrix, x, bias) - (x.astype(np.float64) @ weights.T + bias)),
            1e-6 * magnitude + 1e-6,
        )


@pytest.mark.parametrize("shape", [(1, 1), (37, 61), (64, 576)])
def test_a_product_of_rounded_activations(threads: KernelThreads, shape: tuple[int, int]) -> None:
    """Where weights are bfloat16, the same as in pairs; elsewhere they change nothing or are integers of 16 bits."""
    rows = random_weights("BF16", *shape)
    weights = exact_weights("BF16", rows).astype(np.float64)
    matrix = pack(threads, "BF16", rows, shape[1], BFLOAT16)
    for tokens in (1, 7, 33):
        x = random_activations(tokens, shape[1])
        bits = np.ascontiguousarray(x).view(np.uint32)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32).astype(np.float64)
        error = np.abs(multiply(threads, matrix, x) - rounded @ weights.T)
        np.testing.assert_array_less(error, 1e-6 * np.abs(rounded) @ np.abs(weights).T + 1e-6)
    for dtype, alike in (("F32", 1), ("F16", 1), ("Q8_0", 2)):
        rows = random_weights(dtype, 5, 64)
        x = random_activations(3, 64)
        found, expected = (multiply(threads, pack(threads, dtype, rows, 64, each), x) for each in (BFLOAT16, alike))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(37, 256), (72, 768), (5, 1536)])
@pytest.mark.parametrize("dtype", FLOAT8)
def test_a_product_of_small_floats_is_the_dense_one(
    threads: KernelThreads, dtype: DType, shape: tuple[int, int]
) -> None:
    rows = random_weights(dtype, *shape)
    matrix = pack(threads, dtype, rows, shape[1])
    dense = pack(threads, "F32", exact_weights(dtype, rows).view(np.uint8), shape[1])
    for tokens in (1, 3, 8, 33):
        x = random_activations(tokens, shape[1])
        np.testing.assert_array_equal(multiply(threads, matrix, x), multiply(threads, dense, x))


@pytest.mark.parametrize("shape", [(37, 256), (72, 768), (5, 1536)])
@pytest.mark.parametrize("num_bytes", STEPS)
@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
def test_quantized_product(threads: KernelThreads, dtype: DType, num_bytes: int, shape: tuple[int, int]) -> None:
    rows = random_weights(dtype, *shape)
    weights = exact_weights(dtype, rows).astype(np.float64)
    matrix = pack(threads, dtype, rows, shape[1], num_bytes)
    bias = np.linspace(-3, 3, shape[0], dtype=np.float32)
    for tokens in (1, 2, 3, 7, 8, 16, 33, 512):
        x = random_activations(tokens, shape[1])
        y = multiply(threads, matrix, x, bias)
        rounded, doubt = rounded_activations(x, num_bytes)
        float_error = 1e-6 * np.abs(rounded) @ np.abs(weights).T + 1e-6
        np.testing.assert_array_less(np.abs(y - (rounded @ weights.T + bias)), float_error + doubt @ np.abs(weights).T)
        largest = np.abs(x).reshape(tokens, -1, 32).max(axis=2).repeat(32, axis=1).astype(np.float64)
        allowed = (largest / (2 * STEPS[num_bytes])) @ np.abs(weights).T
        np.testing.assert_array_less(np.abs(y - (x @ weights.T + bias)), allowed + float_error)


@pytest.mark.parametrize(("dtype", "num_bytes"), [*product(DTYPES, STEPS), ("BF16", BFLOAT16)])
def test_output_does_not_depend_on_the_batch(threads: KernelThreads, dtype: DType, num_bytes: int) -> None:
    matrix = pack(threads, dtype, random_weights(dtype, 203, 512), 512, num_bytes)
    x = random_activations(64, 512)
    together = multiply(threads, matrix, x)
    for tokens in (1, 2, 5, 11, 64):
        np.testing.assert_array_equal(multiply(threads, matrix, x[-tokens:]), together[-tokens:])
    for num_threads in (1, 3):
        others = KernelThreads(threads.library, num_threads)
        np.testing.assert_array_equal(multiply(others, matrix, x), together)
        others.close()


@pytest.mark.parametrize("num_bytes", STEPS)
@pytest.mark.parametrize("dtype", ["F32", "Q4_1", "Q6_K"])
def test_numbers_that_are_not_finite_reach_the_output(threads: KernelThreads, dtype: DType, num_bytes: int) -> None:
    matrix = pack(threads, dtype, random_weights(dtype, 16, 256), 256, num_bytes)
    x = random_activations(3, 256)
    clean = multiply(threads, matrix, x)
    x[1, 70] = np.nan
    spoiled = multiply(threads, matrix, x)
    assert np.isnan(spoiled[1]).all()
    np.testing.assert_array_equal(spoiled[[0, 2]], clean[[0, 2]])
    x[1, 70] = np.inf
    assert not np.isfinite(multiply(threads, matrix, x)[1]).any()


@pytest.mark.parametrize("num_bytes", STEPS)
@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
def test_extremes_do_not_overflow(threads: KernelThreads, dtype: DType, num_bytes: int) -> None:
    """Every code is all ones, and every activation has the largest magnitude."""
    rows = np.full_like(random_weights(dtype, 16, 256), 255)
    if dtype in ("Q8_0", "I8_32", "I8_128"):
        rows[:] = 0x80
    if dtype == "IQ4_NL":
        rows[:] = 0
    if dtype == "MXFP4":
        rows.reshape(16, -1, 17)[:, :, 0] = 127
    for at in SCALES[dtype]:
        block_bytes, one = BLOCK_FORMATS[dtype][1], np.ones(1, scale_type(dtype))
        rows.reshape(16, -1, block_bytes)[:, :, at : at + one.itemsize] = one.view(np.uint8)
    x = np.where(np.arange(256) % 64 < 32, -3, 3).astype(np.float32)[None]
    x[0, 100:200] = 3
    weights = exact_weights(dtype, rows).astype(np.float64)
    matrix = pack(threads, dtype, rows, 256, num_bytes)
    np.testing.assert_allclose(multiply(threads, matrix, x), x @ weights.T, rtol=1e-6)


def test_zero_activations_give_the_bias(threads: KernelThreads) -> None:
    matrix = pack(threads, "Q4_1", random_weights("Q4_1", 9, 64), 64)
    bias = np.arange(9, dtype=np.float32)
    x = np.zeros((3, 64), np.float32)
    np.testing.assert_array_equal(multiply(threads, matrix, x, bias), np.tile(bias, (3, 1)))
    x[1] = 1e-35
    np.testing.assert_allclose(multiply(threads, matrix, x, bias), np.tile(bias, (3, 1)), atol=1e-30)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_loop_visits_everything_once(threads: KernelThreads, num_threads: int) -> None:
    pool = KernelThreads(threads.library, num_threads)
    for session in (nullcontext(), pool.session()):
        with session:
            for count, grain in ((1, 1), (7, 10), (100, 1), (1000, 16)):
                np.testing.assert_array_equal(pool.count_loops(count, grain, 200), 200)
            np.testing.assert_array_equal(pool.count_loops(0, 1, 1), [])
    pool.close()
