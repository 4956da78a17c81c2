"""Load-time conversion: every file format to every dense one, against the reference, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.kernels.cpu.weights import convert
from octavo.kernels.reference.dequantize import convert as reference_convert
from octavo.kernels.tensor import DENSE_DTYPES, DTYPES, DType, HostTensor, from_array, num_bytes


def random_tensor(dtype: DType, rows: int, cols: int) -> HostTensor:
    rng = np.random.default_rng(0)
    if dtype in DENSE_DTYPES:
        values = from_array(rng.standard_normal((rows, cols), np.float32))
        return reference_convert(values, dtype)
    # Bytes below 60: fp16 scales wherever a format has them are small and finite.
    return HostTensor(dtype, (rows, cols), rng.integers(0, 60, num_bytes(dtype, (rows, cols)), np.uint8))


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", sorted(DENSE_DTYPES))
def test_agrees_with_the_reference(source: DType, target: DType) -> None:
    tensor = random_tensor(source, 37, 512)
    ours, theirs = convert(tensor, target), reference_convert(tensor, target)
    assert (ours.dtype, ours.shape) == (target, (37, 512))
    assert np.array_equal(ours.data, theirs.data)


def test_rounds_to_nearest_even_and_keeps_special_values() -> None:
    bits = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F800000, 0xFF800000, 0x7F800001, 0x80000000, 0x7F7FFFFF]
    values = from_array(np.array([bits], np.uint32).view(np.float32))
    halves = convert(values, "BF16").data.view(np.uint16)
    assert halves[:5].tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0xFF80]
    assert halves[5] & 0x7FFF > 0x7F80, "a NaN stays a NaN"
    assert halves[6:].tolist() == [0x8000, 0x7F80]


def test_float16_subnormals_and_ties() -> None:
    values = np.array([[6e-8, 2.9e-8, 3.1e-8, 1e-5, 65504, 65519, np.inf, 1 + 2**-11, 1 + 3 * 2**-11]], np.float32)
    halves = convert(from_array(values), "F16").data.view(np.float16)
    assert np.array_equal(halves, values.astype(np.float16)[0])


@pytest.mark.parametrize("value", [65520, -1e9])
def test_what_float16_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(OverflowError, match="does not fit float16, whose limit is 65504"):
        convert(from_array(np.array([[1, value]], np.float32)), "F16")


def test_a_tensor_of_the_wanted_dtype_is_returned_as_it_is() -> None:
    tensor = random_tensor("F32", 2, 8)
    assert convert(tensor, "F32") is tensor
