"""Scales, and a bias, that come behind a product of fp8; and such products of rows from few to many."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, relative_error  # isort: split

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.plain_codes import PlainCodes
from octavo.kernels.cuda.quantized_product import QuantizedProduct
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight
from octavo.kernels.scaled import ScaledFormat
from octavo.kernels.triton.linear.late_scales import put_scales
from octavo.kernels.triton.linear.quantized import fp8_product
from tests.gpu.quantized_matrix import random_matrix
from tests.gpu.test_quantized_rows import dense_of


@pytest.mark.parametrize("has_bias", [False, True])
def test_scales_come_behind_a_product(has_bias: bool) -> None:
    sums, width = torch.randn(5, 1500, device=DEVICE), 1500
    rows, columns = torch.rand(5, 1, device=DEVICE) + 0.5, torch.rand(width, device=DEVICE) + 0.5
    bias = torch.randn(width, device=DEVICE) if has_bias else None
    expected = sums * rows * columns + (0 if bias is None else bias)
    put_scales(sums, rows, columns, bias, chained=False)
    torch.testing.assert_close(sums, expected)


@pytest.mark.skipif(not ON_GPU or torch.cuda.get_device_capability() < (8, 9), reason="a library's product of fp8")
@pytest.mark.parametrize("rows", [17, 40, 256, 300])
def test_rows_in_fp8_times_a_matrix_with_a_bias(rows: int) -> None:
    form, depth = ScaledFormat("F8_E4M3", (1, 0)), 512
    tensor = random_matrix(form, (128, depth), size=depth**-0.5)
    weight = QuantizedWeight.of([PlainCodes.of(tensor, DEVICE)], form, torch.bfloat16)
    bias = torch.randn(128, device=DEVICE).to(torch.bfloat16)
    room, scales = torch.empty(rows * depth, dtype=torch.uint8, device=DEVICE), torch.empty(rows, device=DEVICE)
    gpu, one = GPU("a GPU", (9, 0), 1 << 34, 132), torch.ones((), device=DEVICE)
    product = QuantizedProduct(weight, bias, room, room, scales, gpu, fp8_product, one)
    x, out = (
        torch.randn(rows, depth, device=DEVICE).to(torch.bfloat16),
        torch.empty(rows, 128, device=DEVICE).bfloat16(),
    )
    product.run(x, out)
    assert relative_error(out, x.float() @ dense_of(tensor).t() + bias.float()) < 0.04
