"""Matrices whose inputs are sorted by importance, multiplied by the kernels for those in order, against torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, relative_error

from octavo.kernels.cuda.driver import GPU, find_gpu  # isort: skip
from octavo.kernels.cuda.ordered_product import OrderedProduct  # isort: skip
from octavo.kernels.cuda.plain_codes import PlainCodes  # isort: skip
from octavo.kernels.cuda.quantized_product import QuantizedProduct  # isort: skip
from octavo.kernels.cuda_cpp.compile import find_nvcc  # isort: skip
from octavo.kernels.cuda_cpp.quantized_format import LARGEST_WIDE_TILE  # isort: skip
from octavo.kernels.cuda_cpp.quantized_weight import OrderedWeight  # isort: skip
from octavo.kernels.cuda_cpp.wide_codes import Exchange  # isort: skip
from octavo.kernels.reference.scaled import dequantize_scaled  # isort: skip
from octavo.kernels.scaled import ScaledFormat  # isort: skip
from octavo.kernels.triton.linear.quantized import gather_inputs  # isort: skip
from tests.gpu.quantized_matrix import random_matrix  # isort: skip

FORMATS = [
    ScaledFormat("U4", (1, 128), is_sorted=True),
    ScaledFormat("U4", (1, 64), has_zeros=True, is_sorted=True),
    ScaledFormat("I8", (1, 128), is_sorted=True),
]


@pytest.mark.skipif(not ON_GPU or find_nvcc() is None, reason="needs a GPU and nvcc")
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.label)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_equals_torch(form: ScaledFormat, dtype: torch.dtype) -> None:
    gpu = find_gpu(0)
    assert gpu is not None
    for rows in (1, 8, 40, 300, 3500):
        product_equals_torch(form, dtype, rows, [256, 128, 128], 1024, gpu)


def product_equals_torch(form: ScaledFormat, dtype: Any, rows: int, outputs: list[int], depth: int, gpu: GPU) -> None:
    """Matrices, of which the first two sort inputs in the same way; a bias."""
    parts = [random_matrix(form, (count, depth), seed, size=1.0) for seed, count in enumerate(outputs)]
    parts[1] = replace(parts[1], groups=parts[0].groups)
    plain = [PlainCodes.of(part, DEVICE) for part in parts]
    ordered = OrderedWeight.all_of(plain, form, dtype)
    assert [count for _, count in ordered] == [2, len(parts) - 2]
    assert sum(weight.orders.shape[0] for weight, _ in ordered) == len(parts)
    numbers = [np.array(dequantize_scaled(part), np.float32).reshape(-1, depth) for part in parts]
    dense = torch.from_numpy(np.concatenate(numbers)).to(DEVICE)
    scratch = torch.full((len(dense) * depth + rows * depth,), torch.nan, device=DEVICE, dtype=dtype)
    blocks, bias = gpu.num_multiprocessors, torch.randn(len(dense), device=DEVICE).to(dtype)
    exchange = Exchange(
        torch.empty(blocks * LARGEST_WIDE_TILE, device=DEVICE), torch.zeros(1 + blocks, device=DEVICE).int()
    )
    weights = [weight for weight, _ in ordered]
    biases = bias.split([weight.matrix.columns for weight in weights])
    products = tuple(
        QuantizedProduct(weight.matrix, own, scratch, scratch, scratch, gpu, None, scratch, exchange)
        for weight, own in zip(weights, biases, strict=True)
    )
    x = torch.randn(rows, depth + 32, device=DEVICE).to(dtype)[:, 32:]
    out = torch.full((rows, len(dense)), torch.nan, device=DEVICE, dtype=dtype)
    OrderedProduct(products, weights, scratch[len(dense) * depth :], gpu).run(x, out)
    assert relative_error(out, x.float() @ dense.T + bias.float()) < TOLERANCE[dtype], rows


def test_inputs_are_gathered() -> None:
    x, order = torch.randn(3, 1200, device=DEVICE).bfloat16()[:, 40:], torch.randperm(1160, device=DEVICE).int()
    out = torch.full((3, 1160), torch.nan, device=DEVICE, dtype=torch.bfloat16)
    gather_inputs(x, order, out)
    assert torch.equal(out, x[:, order.long()])
