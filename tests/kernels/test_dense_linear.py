"""One row times 16-bit numbers by the GPU's own kernel, on the CPU: `block_on_cpu/ptx.cuh` has its threads take turns.

So its indices, waits, alignments and sums are tested where there is no GPU. tests/gpu/test_linear.py asks the same of a
GPU, for more shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.cuda_cpp import dense_linear as kernel  # noqa: E402
from tests.gpu.device import TOLERANCE, relative_error  # noqa: E402
from tests.kernels.kernel_on_cpu import FEW_BLOCKS, run_on_cpu  # noqa: E402


@pytest.fixture(autouse=True)
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    run_on_cpu(kernel, tmp_path, monkeypatch)
    kernel._kernel.cache_clear()
    yield
    kernel._kernel.cache_clear()


@pytest.mark.parametrize(("columns", "depth"), [(100, 2880), (7, 512), (1, 8), (61, 4096)])
def test_bias_norm_and_residual(columns: int, depth: int) -> None:
    """Blocks and warps have unequal shares, some none; 2,880 inputs are no multiple of 512."""
    dtype = torch.bfloat16
    x, weight = torch.randn(1, depth).to(dtype), torch.randn(columns, depth).to(dtype)
    residual, bias, norm = torch.randn(1, columns).to(dtype), torch.randn(columns).to(dtype), torch.rand(depth) + 0.5
    normed = torch.nn.functional.rms_norm(x.float(), [depth], norm, 1e-6)
    expected = torch.nn.functional.linear(normed, weight.float(), bias.float()) + residual.float()
    kernel.dense_linear(x, weight, residual, gpu=FEW_BLOCKS, bias=bias, norm_weight=norm, residual=residual)
    assert relative_error(residual, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize(("dtype", "is_large"), [(torch.bfloat16, False), (torch.float16, True)])
def test_gate(dtype: Any, is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By either form of thread block."""
    columns, depth = 50, 1032
    monkeypatch.setattr(kernel, "_LARGE_BYTES", 0 if is_large else 1 << 40)
    x, weight = torch.randn(1, depth).to(dtype), (torch.randn(2 * columns, depth) * depth**-0.5).to(dtype)
    gate, up = (x.float() @ weight.float().T).chunk(2, 1)
    out = torch.empty(1, columns, dtype=dtype)
    kernel.dense_linear(x, weight, out, gpu=FEW_BLOCKS, gate="silu")
    assert relative_error(out, torch.nn.functional.silu(gate) * up) < TOLERANCE[dtype]
