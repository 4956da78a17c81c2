"""Skinny products, with everything fused around them, against torch in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, relative_error

from octavo.kernels.cuda.driver import find_gpu  # isort: skip
from octavo.kernels.cuda_cpp.dense_linear import dense_linear, takes  # isort: skip
from octavo.kernels.triton.linear.skinny_linear import Tiling, choose_tiling, skinny_linear  # isort: skip

DTYPES = [torch.float16, torch.bfloat16, torch.float32] if ON_GPU else [torch.float32]
SHAPES = [(1024, 4096), (2048, 1024), (3072, 1024), (896, 151)] if ON_GPU else [(192, 40)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 8, 16, 17, 64] if ON_GPU else [1, 3, 5])
@pytest.mark.parametrize("chained", [False, True] if ON_GPU else [False])
class TestSkinnyLinear:
    def test_plain(self, shape: tuple[int, int], dtype: torch.dtype, num_rows: int, chained: bool) -> None:
        x, weight, out = operands(shape, dtype, num_rows)
        skinny_linear(x, weight, out, tiling=tiling_for(num_rows, shape), chained=chained)
        assert relative_error(out, F.linear(x.float(), weight.float())) < TOLERANCE[dtype]

    def test_bias_and_residual(self, shape: tuple[int, int], dtype: torch.dtype, num_rows: int, chained: bool) -> None:
        x, weight, out = operands(shape, dtype, num_rows)
        residual, bias = torch.randn_like(out), torch.randn(shape[1], device=DEVICE)
        expected = F.linear(x.float(), weight.float(), bias) + residual.float()
        tiling = tiling_for(num_rows, shape)
        skinny_linear(x, weight, residual, bias=bias, residual=residual, tiling=tiling, chained=chained)
        assert relative_error(residual, expected) < TOLERANCE[dtype]

    def test_norm_and_gate(self, shape: tuple[int, int], dtype: torch.dtype, num_rows: int, chained: bool) -> None:
        tiling = tiling_for(num_rows, shape)
        if tiling.depth:
            pytest.skip("the matrix path has neither")
        x, weight, out = operands((shape[0], 2 * shape[1]), dtype, num_rows)
        norm, bias = torch.rand(shape[0], device=DEVICE) + 0.5, torch.randn(2 * shape[1], device=DEVICE)
        out = out[:, : shape[1]]
        skinny_linear(
            x * 5, weight, out, norm_weight=norm, eps=1e-5, bias=bias, gate="silu", tiling=tiling, chained=chained
        )
        normed = F.rms_norm(x.float() * 5, shape[:1], norm, 1e-5)
        gate, up = F.linear(normed, weight.float(), bias).chunk(2, 1)
        assert relative_error(out, F.silu(gate) * up) < TOLERANCE[dtype]


@pytest.mark.skipif(not ON_GPU, reason="compiled by nvcc; tests/kernels/test_dense_linear.py runs it on the CPU")
@pytest.mark.parametrize("shape", [(1024, 4096), (2880, 5120), (4096, 2880), (14336, 4096)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
class TestOneRowInCuda:
    """In a chain, in which each kernel copies weights before the one before it has ended."""

    def test_bias_norm_and_residual(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        gpu = find_gpu(0)
        if gpu is None or not takes(torch.empty(shape[::-1], dtype=dtype), gpu):
            pytest.skip("this GPU chains no kernels, or nvcc is missing")
        x, weight, residual = operands(shape, dtype, 1)
        residual.normal_()
        norm, bias = torch.rand(shape[0], device=DEVICE) + 0.5, torch.randn(shape[1], device=DEVICE).to(dtype)
        for _ in range(3):
            expected = F.linear(F.rms_norm(x.float(), shape[:1], norm, 1e-5), weight.float(), bias.float())
            expected += residual.float()
            dense_linear(x, weight, residual, gpu=gpu, bias=bias, norm_weight=norm, eps=1e-5, residual=residual)
            assert relative_error(residual, expected) < TOLERANCE[dtype]

    def test_gate(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        gpu = find_gpu(0)
        if gpu is None or not takes(torch.empty(2 * shape[1], shape[0], dtype=dtype), gpu, "silu"):
            pytest.skip("this GPU chains no kernels, or nvcc is missing")
        x, weight, out = operands((shape[0], 2 * shape[1]), dtype, 1)
        out = out[:, : shape[1]]
        for _ in range(3):
            dense_linear(x, weight, out, gpu=gpu, gate="silu")
        gate, up = F.linear(x.float(), weight.float()).chunk(2, 1)
        assert relative_error(out, F.silu(gate) * up) < TOLERANCE[dtype]


def test_large_weights_are_left_to_the_library() -> None:
    assert choose_tiling(16, 6144, 4096) is None
    assert choose_tiling(128, 1024, 1024) is None
    assert choose_tiling(1, 128256, 4096) is not None


@pytest.mark.parametrize("num_bytes", [99 << 10, 163 << 10, 227 << 10])
@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize("shape", [(2048, 2048), (3072, 4096), (1024, 1024)])
def test_stages_fit_in_shared_memory(shape: tuple[int, int], element_size: int, num_bytes: int) -> None:
    for num_rows in range(5, 65):
        rows = max(16, 1 << (num_rows - 1).bit_length())
        tiling = tiling_for(num_rows, shape)
        stages = tiling.stages_in(num_bytes, rows, element_size)
        assert 1 <= stages <= tiling.num_stages
        assert stages * (rows + tiling.columns) * tiling.depth * element_size <= num_bytes


def tiling_for(num_rows: int, shape: tuple[int, int]) -> Tiling:
    return choose_tiling(num_rows, shape[1], shape[0]) or Tiling(16, 64, 4, 3)


def operands(
    shape: tuple[int, int], dtype: torch.dtype, num_rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [M, in], weight [out, in] and room for the result, poisoned."""
    x = torch.randn(num_rows, shape[0], device=DEVICE).to(dtype)
    weight = (torch.randn(shape[1], shape[0], device=DEVICE) / shape[0] ** 0.5).to(dtype)
    return x, weight, torch.full((num_rows, shape[1]), torch.nan, dtype=dtype, device=DEVICE)
