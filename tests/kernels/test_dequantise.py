"""Quantised weights made dense by the GPU's own kernel, on the CPU (`block_on_cpu/ptx.cuh`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.cuda_cpp import dequantise as kernel  # noqa: E402
from octavo.kernels.scaled import ScaledFormat  # noqa: E402
from tests.kernels.kernel_on_cpu import FEW_BLOCKS, operands, run_on_cpu  # noqa: E402


@pytest.fixture(autouse=True)
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    run_on_cpu(kernel, tmp_path, monkeypatch)
    kernel._kernel.cache_clear()
    yield
    kernel._kernel.cache_clear()


@pytest.mark.parametrize(
    ("form", "shape", "dtype"),
    [
        (ScaledFormat("U4", (1, 64), has_zeros=True), (48, 384), torch.bfloat16),
        (ScaledFormat("I8", (1, 128)), (48, 384), torch.float16),
    ],
    ids=lambda given: getattr(given, "label", None),
)
def test_it_equals_the_host(form: ScaledFormat, shape: tuple[int, int], dtype: Any) -> None:
    weight, dense = operands(form, shape, dtype)
    out = torch.full(dense.shape, torch.nan, dtype=dtype)
    kernel.dequantise(weight, out, gpu=FEW_BLOCKS)
    assert torch.equal(out, dense.to(dtype))
