"""A few rows times a weight of int4, int8 or fp8, with all that is fused around it, against torch in float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from octavo.kernels.cuda.driver import find_gpu
from octavo.kernels.cuda.plain_codes import PlainCodes
from octavo.kernels.cuda_cpp.compile import find_nvcc
from octavo.kernels.cuda_cpp.quantized_format import MAX_ROWS, why_not
from octavo.kernels.cuda_cpp.quantized_linear import quantized_linear
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight
from octavo.kernels.ops import Activation
from octavo.kernels.reference.scaled import dequantize_scaled
from octavo.kernels.scaled import ScaledFormat
from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, relative_error
from tests.gpu.quantized_matrix import FORMATS, random_matrix

if not ON_GPU or find_nvcc() is None:
    pytest.skip("needs a GPU and nvcc", allow_module_level=True)

GPU = find_gpu(0)
#: out, in: more units than blocks; one unit; a last stage that is not full
SHAPES = [(4096, 1024), (128, 512), (256, 2688), (384, 14336)]
ROWS = [1, 3, 8, 9, MAX_ROWS]


def operands(form: ScaledFormat, shape: tuple[int, int], dtype: torch.dtype) -> tuple[QuantizedWeight, torch.Tensor]:
    """Two matrices of the shape, one below the other, and the numbers that they hold."""
    parts = [random_matrix(form, shape, seed, size=shape[1] ** -0.5) for seed in (1, 2)]
    dense = [torch.from_numpy(np.array(dequantize_scaled(part), np.float32).reshape(shape)) for part in parts]
    plain = [PlainCodes.of(part, DEVICE) for part in parts]
    return QuantizedWeight.of(plain, form, dtype), torch.cat(dense).to(DEVICE)


def fits(rows: int, depth: int) -> bool:
    return rows * depth * 2 < 100 << 10


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.label)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
class TestQuantizedLinear:
    def test_bias_norm_and_residual(self, shape: tuple[int, int], form: ScaledFormat, dtype: torch.dtype) -> None:
        if why_not(form, *shape):
            pytest.skip("not taken")
        weight, dense = operands(form, shape, dtype)
        for rows in ROWS:
            if not fits(rows, shape[1]):
                continue
            x = torch.randn(rows, shape[1], device=DEVICE).to(dtype)
            residual = torch.randn(rows, len(dense), device=DEVICE).to(dtype)
            bias, norm = torch.randn(len(dense), device=DEVICE).to(dtype), torch.rand(shape[1], device=DEVICE) + 0.5
            out = torch.empty_like(residual)
            quantized_linear(x, weight, out, gpu=GPU)
            assert relative_error(out, F.linear(x.float(), dense)) < TOLERANCE[dtype]
            normed = F.rms_norm(x.float(), [shape[1]], norm, 1e-6)
            expected = F.linear(normed, dense, bias.float()) + residual.float()
            quantized_linear(x, weight, residual, gpu=GPU, bias=bias, norm_weight=norm, residual=residual)
            assert relative_error(residual, expected) < TOLERANCE[dtype]

    def test_gate(self, shape: tuple[int, int], form: ScaledFormat, dtype: torch.dtype) -> None:
        if why_not(form, *shape):
            pytest.skip("not taken")
        weight, dense = operands(form, shape, dtype)
        scale = dense.std() * shape[1] ** 0.5
        gates: dict[Activation, Callable[..., torch.Tensor]] = {
            "silu": F.silu,
            "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        }
        for rows in ROWS:
            x = (torch.randn(rows, shape[1], device=DEVICE) / scale).to(dtype)
            if not fits(rows, shape[1]):
                continue
            gate, up = F.linear(x.float(), dense).chunk(2, 1)
            for name, act in gates.items():
                out = torch.empty(rows, shape[0], device=DEVICE, dtype=dtype)
                quantized_linear(x, weight, out, gpu=GPU, gate=name)
                assert relative_error(out, act(gate) * up) < TOLERANCE[dtype]

    def test_parts(self, shape: tuple[int, int], form: ScaledFormat, dtype: torch.dtype) -> None:
        if why_not(form, *shape):
            pytest.skip("not taken")
        weight, dense = operands(form, shape, dtype)
        for rows, parts in ((1, 2), (9, 2), (MAX_ROWS, 4)):
            x = torch.randn(rows, shape[1], device=DEVICE).to(dtype)
            if parts * 2048 > shape[1] + 2047 or not fits(rows, shape[1] // parts):
                continue
            out = torch.empty(parts, rows, len(dense), device=DEVICE)
            quantized_linear(x, weight, out, gpu=GPU)
            assert relative_error(out.sum(0), F.linear(x.float(), dense)) < TOLERANCE[dtype]
