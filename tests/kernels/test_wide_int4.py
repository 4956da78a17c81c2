"""Many rows times int4 by the GPU's own kernel, on the CPU: `block_on_cpu/ptx.cuh` has its threads take turns.

tests/gpu/test_wide_int4.py asks the same of a GPU, for more shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.cuda.driver import GPU  # noqa: E402
from octavo.kernels.cuda_cpp import wide_int4 as kernel  # noqa: E402
from octavo.kernels.scaled import ScaledFormat  # noqa: E402
from tests.gpu.device import relative_error  # noqa: E402
from tests.kernels.kernel_on_cpu import FEW_BLOCKS, operands, run_on_cpu  # noqa: E402


@pytest.fixture(autouse=True)
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    run_on_cpu(kernel, tmp_path, monkeypatch)
    monkeypatch.setattr(kernel, "deal_inputs", _deal)
    kernel._kernel.cache_clear()
    yield
    kernel._kernel.cache_clear()


@pytest.mark.parametrize(
    "cases", [[(131, (304, 128)), (70, (48, 384))], [(161, (200, 384))]], ids=["128 rows", "256 rows"]
)
def test_it_equals_torch(cases: list[tuple[int, tuple[int, int]]]) -> None:
    """Tiles of all sizes, of rows and outputs that do not fill them, and of halves of the inputs; zero points and a
    bias."""
    for rows, shape in cases:
        form = ScaledFormat("U4", (1, 64), has_zeros=True)
        weight, dense = operands(form, shape, torch.bfloat16)
        x, bias = torch.randn(rows, shape[1]).bfloat16(), torch.randn(len(dense)).bfloat16()
        out = torch.full((rows, len(dense)), torch.nan, dtype=torch.bfloat16)
        kernel.wide_int4(x, weight, bias, out, torch.empty(rows * shape[1], dtype=torch.bfloat16), gpu=FEW_BLOCKS)
        assert relative_error(out, x.float() @ dense.T + bias.float()) < 6e-3


@pytest.mark.parametrize(
    ("rows", "columns", "blocks"),
    [
        (512, 28672, 132),
        (512, 4096, 132),
        (512, 6144, 132),
        (384, 28672, 132),
        (131, 608, 3),
        (161, 400, 3),
        (1, 16, 132),
    ],
)
def test_tiles_fill_turns(rows: int, columns: int, blocks: int) -> None:
    tiles = kernel.Tiles.of(rows, columns, blocks)
    row_tiles = -(-rows // tiles.rows)
    if tiles.is_split:
        assert (tiles.whole, tiles.count) == (0, row_tiles * -(-columns // 64))
        return
    units = row_tiles * -(-columns // (128 if tiles.rows == 128 else 64))
    assert units <= tiles.whole + tiles.count < units + 2 * row_tiles, "each part of the result once"
    assert tiles.whole % row_tiles == 0, "all rows of the same outputs"


def test_tiles_of_a_large_model() -> None:
    assert kernel.Tiles.of(512, 28672, 132) == kernel.Tiles(256, 396, 500, is_split=False)
    assert kernel.Tiles.of(384, 28672, 132) == kernel.Tiles(128, 264, 408, is_split=False)
    assert kernel.Tiles.of(256, 4096, 132) == kernel.Tiles(128, 0, 128, is_split=True)


def test_rows_that_it_takes() -> None:
    weight, _ = operands(ScaledFormat("U4", (1, 64)), (64, 128), torch.bfloat16)
    gpu = GPU("a GPU", (9, 0), 1 << 34, 132)
    taken = [
        kernel.takes_wide(replace(weight, columns=columns), torch.empty(rows, 128, dtype=torch.bfloat16), gpu)
        for rows, columns in ((256, 4096), (257, 4096), (384, 28672), (513, 28672), (1024, 28672), (1025, 28672))
    ]
    assert taken == [True, False, True, False, True, False]


def _deal(x: Any, out: Any, *, chained: bool) -> None:
    out.copy_(x.view(len(x), -1, 4, 4, 2).transpose(2, 3).reshape(x.shape))
