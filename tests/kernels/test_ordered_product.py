"""Products whose inputs are gathered first, by the GPU's own kernels, on the CPU.

tests/gpu/test_ordered_product.py asks the same of a GPU, for more rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.cuda import ordered_product  # noqa: E402
from octavo.kernels.cuda_cpp import int4_linear, wide_codes  # noqa: E402
from octavo.kernels.cuda_cpp.wide_codes import SHAPES, Split  # noqa: E402
from tests.gpu.test_ordered_product import FORMATS, product_equals_torch  # noqa: E402
from tests.kernels.kernel_on_cpu import FEW_BLOCKS, run_on_cpu  # noqa: E402


@pytest.fixture(autouse=True)
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for kernel in (int4_linear, wide_codes):
        run_on_cpu(kernel, tmp_path, monkeypatch)
        kernel._kernel.cache_clear()
    yield
    for kernel in (int4_linear, wide_codes):
        kernel._kernel.cache_clear()


@pytest.mark.parametrize("rows", [2, 20])
def test_it_equals_torch(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel for few rows, and for many."""
    monkeypatch.setattr(Split, "of", lambda *_: Split(SHAPES[0], 1, 1))
    monkeypatch.setattr(ordered_product, "gather_inputs", _gather)  # Triton's interpreter chains no kernels
    product_equals_torch(FORMATS[0], torch.bfloat16, rows, [32, 16, 48], 256, FEW_BLOCKS)


def _gather(x: Any, order: Any, out: Any, *, chained: bool) -> None:
    out.copy_(x[:, order.long()])
