"""A few rows times int4 by the GPU's own kernel, on the CPU: `block_on_cpu/ptx.cuh` has its threads take turns.

So its indices, waits, alignments and sums are tested where there is no GPU. tests/gpu/test_quantized_linear.py asks
the same of a GPU, for more shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.cuda_cpp import int4_linear as kernel  # noqa: E402
from octavo.kernels.scaled import ScaledFormat  # noqa: E402
from tests.gpu.device import TOLERANCE, relative_error  # noqa: E402
from tests.kernels.kernel_on_cpu import FEW_BLOCKS, operands, run_on_cpu  # noqa: E402


@pytest.fixture(autouse=True)
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    run_on_cpu(kernel, tmp_path, monkeypatch)
    kernel._kernel.cache_clear()
    yield
    kernel._kernel.cache_clear()


def largest_error(x: Any, dense: Any) -> Any:
    """Of each sum, if every input is off by half of an integer, of which the largest of 128 inputs has 32,639."""
    by_spans = x.float().abs().view(-1, 128), dense.abs().view(len(dense), -1, 128)
    rounding = by_spans[0].amax(1) / 65278
    return by_spans[1].sum(2) @ rounding + 1e-6 * (dense.abs() @ x.float().abs())


def test_bias_norm_residual_and_parts() -> None:
    """2,688 inputs are no multiple of 256, and the last warp of a row's is half full."""
    dtype, rows, depth = torch.bfloat16, 3, 2688
    weight, dense = operands(ScaledFormat("U4", (1, 128), has_zeros=True), (48, depth), dtype)
    x, residual = torch.randn(rows, depth).to(dtype), torch.randn(rows, len(dense)).to(dtype)
    bias, norm = torch.randn(len(dense)).to(dtype), torch.rand(depth) + 0.5
    normed = torch.nn.functional.rms_norm(x.float(), [depth], norm, 1e-6)
    expected = torch.nn.functional.linear(normed, dense, bias.float()) + residual.float()
    kernel.int4_linear(x, weight, residual, gpu=FEW_BLOCKS, bias=bias, norm_weight=norm, residual=residual)
    assert relative_error(residual, expected) < TOLERANCE[dtype]
    x[0, ::97] *= 100
    x[1], x[2, 700] = 0, torch.nan
    parts = torch.empty(2, rows, len(dense))
    kernel.int4_linear(x, weight, parts, gpu=FEW_BLOCKS)
    off = (parts.sum(0) - x.float() @ dense.T).abs()
    assert torch.all(off[0] <= largest_error(x[0], dense)), "an input is off by a 65,278th of the largest of its 128"
    assert torch.all(parts.sum(0)[1] == 0)
    assert torch.all(parts.sum(0)[2].isnan()), "NaN is not lost"


@pytest.mark.parametrize(
    ("form", "dtype", "rows", "shape"),
    [
        (ScaledFormat("U4", (1, 64)), torch.float16, 9, (48, 1024)),
        (ScaledFormat("U4", (1, 64), has_zeros=True), torch.float16, 1, (16, 4096)),
        (ScaledFormat("U4", (1, 0)), torch.bfloat16, 1, (16, 1024)),
    ],
    ids=["groups", "long pieces", "outputs"],
)
def test_gate(form: ScaledFormat, dtype: Any, rows: int, shape: tuple[int, int]) -> None:
    weight, dense = operands(form, shape, dtype)
    x = (torch.randn(rows, shape[1]) / (dense.std() * shape[1] ** 0.5)).to(dtype)
    gate, up = (x.float() @ dense.T).chunk(2, 1)
    out = torch.empty(rows, shape[0], dtype=dtype)
    kernel.int4_linear(x, weight, out, gpu=FEW_BLOCKS, gate="silu")
    assert relative_error(out, torch.nn.functional.silu(gate) * up) < TOLERANCE[dtype]
