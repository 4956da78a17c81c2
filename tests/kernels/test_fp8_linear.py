"""A few rows times fp8 by the GPU's own kernel, on the CPU: `block_on_cpu/ptx.cuh` has its threads take turns.

tests/gpu/test_quantized_linear.py asks the same of a GPU, for more shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.cuda_cpp import fp8_linear as kernel  # noqa: E402
from octavo.kernels.scaled import ScaledFormat  # noqa: E402
from tests.gpu.device import relative_error  # noqa: E402
from tests.kernels.kernel_on_cpu import FEW_BLOCKS, operands, run_on_cpu  # noqa: E402

BF16, ROUNDING = torch.bfloat16, 3e-3  # of bfloat16 results, and a little


@pytest.fixture(autouse=True)
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    run_on_cpu(kernel, tmp_path, monkeypatch)
    kernel._kernel.cache_clear()
    kernel._map_of.cache_clear()
    yield
    kernel._kernel.cache_clear()
    kernel._map_of.cache_clear()


def test_bias_norm_residual_and_what_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,408 inputs are no multiple of 512, three rows become four, and the ring is used again. Rows do not touch each
    other."""
    monkeypatch.setattr(kernel, "_RING_BYTES", 32 << 10)
    rows, depth = 3, 1408
    weight, dense = operands(ScaledFormat("F8_E4M3", (1, 0)), (48, depth), BF16)
    x, residual = torch.randn(rows, depth).to(BF16), torch.randn(rows, len(dense)).to(BF16)
    x[1] *= 2.0 ** torch.randint(-20, 20, (depth,))
    x[2, 300] = float("inf")
    bias, norm = torch.randn(len(dense)).to(BF16), torch.rand(depth) + 0.5
    normed = torch.nn.functional.rms_norm(x.float(), [depth], norm, 1e-6)
    expected = torch.nn.functional.linear(normed, dense, bias.float()) + residual.float()
    kernel.fp8_linear(x, weight, residual, gpu=FEW_BLOCKS, bias=bias, norm_weight=norm, residual=residual)
    assert all(relative_error(residual[row], expected[row]) < ROUNDING for row in (0, 1))
    assert residual[2].isnan().all()


def test_gate_of_a_weight_in_blocks() -> None:
    depth, columns = 896, 128
    weight, dense = operands(ScaledFormat("F8_E4M3", (128, 128)), (columns, depth), BF16)
    x = (torch.randn(1, depth) / (dense.std() * depth**0.5)).to(BF16)
    gate, up = (x.float() @ dense.T).chunk(2, 1)
    out = torch.empty(1, columns, dtype=BF16)
    kernel.fp8_linear(x, weight, out, gpu=FEW_BLOCKS, gate="silu")
    assert relative_error(out, torch.nn.functional.silu(gate) * up) < ROUNDING
