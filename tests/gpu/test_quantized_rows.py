"""Quantised weights made dense, and rows made fp8, against the host's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE, needs_gpu  # isort: split

from octavo.kernels.cuda.plain_codes import PlainCodes
from octavo.kernels.cuda_cpp.quantized_format import why_not
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight
from octavo.kernels.reference.scaled import dequantize_scaled
from octavo.kernels.scaled import ScaledFormat
from octavo.kernels.triton.linear.quantized import dequantise, quantise_rows
from octavo.quantization.at_load import quantised
from tests.gpu.quantized_matrix import FORMATS, random_matrix

SHAPE = (128, 512)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.label)
def test_a_stack_made_dense_has_its_numbers(form: ScaledFormat, dtype: torch.dtype) -> None:
    assert why_not(form, *SHAPE) is None
    parts = [random_matrix(form, SHAPE, seed) for seed in (1, 2)]
    out = torch.empty(2 * SHAPE[0], SHAPE[1], device=DEVICE)
    dequantise(QuantizedWeight.of([PlainCodes.of(part, DEVICE) for part in parts], form, dtype), out)
    expected = np.concatenate([np.array(dequantize_scaled(part)).reshape(SHAPE) for part in parts])
    assert np.array_equal(out.cpu().numpy(), expected)


@pytest.mark.parametrize("form", [form for form in FORMATS if not form.has_zeros], ids=lambda form: form.label)
def test_the_device_quantises_as_the_host_does(form: ScaledFormat) -> None:
    matrix = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    matrix[3] = 0
    host = QuantizedWeight.of([PlainCodes.of(quantised(matrix, form), DEVICE)], form, torch.bfloat16)
    drawn = PlainCodes.quantise(torch.from_numpy(matrix).to(DEVICE), form)
    own = QuantizedWeight.of([drawn], form, torch.bfloat16)
    assert torch.equal(own.scales, host.scales)
    assert torch.equal(own.data.view(torch.uint8), host.data.view(torch.uint8))


@needs_gpu  # the interpreter cuts bits off where a GPU rounds
def test_a_row_in_fp8_is_near_the_row() -> None:
    x = torch.randn(5, 384, device=DEVICE).to(torch.bfloat16)
    x[2] = 0
    x[3] *= 1e-3
    codes = torch.empty(5, 384, device=DEVICE, dtype=torch.float8_e4m3fn)
    scales = torch.empty(5, 1, device=DEVICE)
    quantise_rows(x, codes, scales)
    error = (codes.float() * scales - x.float()).abs()
    largest = x.float().abs().amax(1, keepdim=True)
    assert (error <= torch.maximum(x.float().abs() / 16, largest / 448 * 2**-10) * 1.001).all()
    assert codes[2].float().abs().max() == 0
