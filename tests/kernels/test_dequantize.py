"""The dequantiser against the gguf package, bit for bit, and conversions against torch."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from octavo.kernels.reference.dequantize import convert, dequantize
from octavo.kernels.tensor import BLOCK_FORMATS, DENSE_DTYPES, FILE_DTYPES, DType, HostTensor, from_array

QUANTISED = [dtype for dtype in FILE_DTYPES if dtype not in DENSE_DTYPES]
COLS = 512
TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def random_tensor(dtype: DType, rows: int = 40) -> HostTensor:
    """Any bytes are a tensor; infinite and NaN scales are part of the test."""
    block_len, block_bytes = BLOCK_FORMATS[dtype]
    data = np.random.default_rng(1).integers(0, 256, rows * COLS // block_len * block_bytes, dtype=np.uint8)
    return HostTensor(dtype, (rows, COLS), data)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("dtype", [*QUANTISED, "F16", "BF16"])
def test_agrees_with_gguf_bit_for_bit(dtype: DType) -> None:
    tensor = random_tensor(dtype)
    expected = gguf.dequantize(tensor.row_data, gguf.GGMLQuantizationType[dtype]).astype(np.float32)
    values = dequantize(tensor)
    assert values.shape == tensor.shape
    is_nan = np.isnan(expected)
    assert np.array_equal(np.isnan(values), is_nan)
    assert np.array_equal(values.view(np.uint32)[~is_nan], expected.view(np.uint32)[~is_nan])


@pytest.mark.parametrize("dtype", QUANTISED)
def test_what_gguf_quantised_comes_back(dtype: DType) -> None:
    values = np.random.default_rng(2).standard_normal((4, COLS), dtype=np.float32)
    try:
        packed = gguf.quantize(values, gguf.GGMLQuantizationType[dtype])
    except NotImplementedError:
        pytest.skip(f"the gguf package does not write {dtype}")
    restored = dequantize(HostTensor(dtype, values.shape, packed.reshape(-1)))
    assert np.abs(restored - values).max() < {"Q8_0": 0.02, "MXFP4": 0.55}.get(dtype, 0.35)


def test_float32_is_not_copied() -> None:
    tensor = from_array(np.ones((2, 3), np.float32))
    assert np.shares_memory(dequantize(tensor), tensor.data)
    assert convert(tensor, "F32") is tensor


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("target", ["F32", "F16", "BF16"])
def test_conversions_round_as_torch_does(source: DType, target: DType) -> None:
    values = torch.from_numpy(np.random.default_rng(3).standard_normal((7, COLS), dtype=np.float32))
    values[0, :6] = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-8])
    stored = values.to(TORCH_DTYPES[source])
    tensor = HostTensor(source, (7, COLS), stored.view(torch.uint8).numpy().reshape(-1))
    expected = stored.to(TORCH_DTYPES[target]).float().numpy()
    converted = convert(tensor, target)
    assert converted.dtype == target
    assert converted.shape == tensor.shape
    assert np.array_equal(dequantize(converted), expected, equal_nan=True)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_a_quantised_tensor_converts_as_its_float32_values_do() -> None:
    tensor = random_tensor("Q6_K", rows=700)
    through_float32 = convert(from_array(dequantize(tensor)), "BF16")
    assert np.array_equal(convert(tensor, "BF16").data, through_float32.data)


def test_float16_overflow_is_an_error_that_names_the_value() -> None:
    with pytest.raises(OverflowError, match="70000 does not fit float16"):
        convert(from_array(np.array([[1.0, 70_000.0]], np.float32)), "F16")
