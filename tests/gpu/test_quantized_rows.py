"""Quantised weights made dense, and rows made fp8, against the host's arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, needs_gpu, relative_error  # isort: split

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.plain_codes import PlainCodes
from octavo.kernels.cuda.sizes import scaled_rows, scratch_shapes
from octavo.kernels.cuda_cpp.quantized_format import why_not
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight
from octavo.kernels.parameters import Linear
from octavo.kernels.reference.scaled import dequantize_scaled
from octavo.kernels.scaled import ScaledFormat
from octavo.kernels.triton.linear.quantized import dequantise, fp8_block_product, quantise_row_blocks, quantise_rows
from octavo.quantization.at_load import QuantisedAtLoad, quantised
from octavo.testing import made_parameters
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


@needs_gpu
def test_each_block_of_a_row_in_fp8_is_near_the_row() -> None:
    x = torch.randn(5, 3 * 1024 + 128, device=DEVICE).to(torch.bfloat16)
    x[2, 128:] = 0
    x[:, 256:] *= 1e-3
    codes = torch.empty(x.shape, device=DEVICE, dtype=torch.float8_e4m3fn)
    scales = torch.empty(25, 5, device=DEVICE)
    quantise_row_blocks(x, codes, scales)
    blocks = x.float().unflatten(1, (-1, 128))
    error = (codes.float().unflatten(1, (-1, 128)) * scales.t()[..., None] - blocks).abs()
    largest = blocks.abs().amax(2, keepdim=True)
    assert (error <= torch.maximum(blocks.abs() / 16, largest / 448 * 2**-10) * 1.001).all()


@pytest.mark.skipif(not ON_GPU or torch.cuda.get_device_capability() != (9, 0), reason="a library's product on sm_90")
@pytest.mark.parametrize("rows", [17, 64, 65, 130, 1000])
def test_a_matrix_in_blocks_times_rows_in_blocks(rows: int) -> None:
    form, shape = ScaledFormat("F8_E4M3", (128, 128)), (384, 1536)
    tensor = random_matrix(form, shape, size=shape[1] ** -0.5)
    weight = QuantizedWeight.of([PlainCodes.of(tensor, DEVICE)], form, torch.bfloat16)
    x = torch.randn(rows, shape[1], device=DEVICE).to(torch.bfloat16)
    bias, out = (torch.randn(*each, shape[0], device=DEVICE).to(torch.bfloat16) for each in ((), (rows,)))
    codes = torch.empty(x.numel(), dtype=torch.uint8, device=DEVICE)
    scales = torch.empty(x.numel() // 128, device=DEVICE)
    fp8_block_product(x, weight.data, weight.scales, bias, out, codes, scales, chained=False)
    rounded = codes.view(torch.float8_e4m3fn).float().view(rows, -1, 128) * scales.view(-1, rows).t()[..., None]
    dense = torch.from_numpy(np.array(dequantize_scaled(tensor)).reshape(shape)).to(DEVICE)
    assert relative_error(out, rounded.view(rows, -1) @ dense.t() + bias.float()) < 0.006
    assert relative_error(out, x.float() @ dense.t() + bias.float()) < 0.04


def test_a_library_takes_blocks_where_it_can() -> None:
    hopper, older = (GPU("a GPU", capability, 1 << 34, 132) for capability in ((9, 0), (8, 9)))
    form = ScaledFormat("F8_E4M3", (128, 128))

    def linear(*shape: int) -> Linear:
        part = made_parameters.parameter(np.zeros(shape, np.float32))
        return Linear((replace(part, scheme=QuantisedAtLoad(form, "fp8")),))

    fits, narrow, short = linear(256, 1024), linear(192, 1024), linear(256, 640)
    assert scaled_rows(fits, "bfloat16", hopper) == "blocks"
    for linear, dtype, gpu in ((narrow, "bfloat16", hopper), (short, "bfloat16", hopper), (fits, "float16", hopper)):
        assert scaled_rows(linear, dtype, gpu) is None
    assert scaled_rows(fits, "bfloat16", older) is None
    assert scratch_shapes([fits, narrow], 10, "bfloat16", hopper) == {"dense": 192 * 1024, "codes": 10240, "scales": 80}
