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
from octavo.kernels.cuda_cpp.wide_int4 import SHAPES, Tiles  # noqa: E402
from octavo.kernels.scaled import ScaledFormat  # noqa: E402
from tests.gpu.device import relative_error  # noqa: E402
from tests.kernels.kernel_on_cpu import FEW_BLOCKS, operands, run_on_cpu  # noqa: E402


@pytest.fixture
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    run_on_cpu(kernel, tmp_path, monkeypatch)
    monkeypatch.setattr(kernel, "deal_inputs", _deal)
    kernel._kernel.cache_clear()
    yield
    kernel._kernel.cache_clear()


@pytest.mark.usefixtures("_runs_here")
@pytest.mark.parametrize(
    ("shape", "has_zeros", "cases"),
    [
        (SHAPES[0], True, [(131, (304, 128)), (70, (48, 384))]),
        (SHAPES[1], False, [(161, (200, 384))]),
    ],
    ids=lambda value: f"{value.rows}x{value.outputs}" if isinstance(value, kernel.Shape) else None,
)
def test_it_equals_torch(
    shape: kernel.Shape, has_zeros: bool, cases: list[tuple[int, tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tiles, of rows and outputs that do not fill them; zero points, or short scales; a bias."""
    for rows, size in cases:
        form = ScaledFormat("U4", (1, 64), has_zeros=has_zeros)
        weight, dense = operands(form, size, torch.bfloat16)
        if not has_zeros:
            factor = weight.scales.bfloat16().float() / weight.scales
            weight = replace(weight, scales=weight.scales * factor, has_short_scales=True)
            dense *= factor.permute(0, 3, 2, 1).reshape(len(dense), -1).repeat_interleave(64, 1)
        x, bias = torch.randn(rows, size[1]).bfloat16(), torch.randn(len(dense)).bfloat16()
        expected = x.float() @ dense.T + bias.float()
        for tiles in Tiles.all_of(shape, rows, len(dense), FEW_BLOCKS.num_multiprocessors):
            monkeypatch.setattr(Tiles, "of", lambda *_, tiles=tiles: tiles)
            out = torch.full((rows, len(dense)), torch.nan, dtype=torch.bfloat16)
            room = torch.full((rows * size[1] * (1 if tiles.is_split else 2),), torch.nan, dtype=torch.bfloat16)
            kernel.wide_int4(x, weight, bias, out, room, gpu=FEW_BLOCKS)
            assert relative_error(out, expected) < 6e-3, tiles


@pytest.mark.parametrize(
    ("rows", "columns", "blocks"),
    [(512, 28672, 132), (512, 4096, 132), (384, 28672, 132), (131, 608, 3), (161, 400, 3), (1, 16, 132)],
)
def test_tiles_have_each_part_of_the_result_once(rows: int, columns: int, blocks: int) -> None:
    for shape in SHAPES:
        row_tiles = -(-rows // shape.rows)
        for tiles in Tiles.all_of(shape, rows, columns, blocks):
            assert tiles.whole % row_tiles == 0, "all rows of the same outputs"
            rest = 64 if tiles.is_split else shape.outputs // 2
            outputs = (tiles.whole * shape.outputs + (tiles.count - tiles.whole) * rest) // row_tiles
            assert columns <= outputs < columns + shape.outputs


def test_tiles_of_a_large_model() -> None:
    assert Tiles.of(256, 4096, 132) == Tiles(SHAPES[0], 0, 128, is_split=True)
    assert Tiles.of(384, 6144, 132) == Tiles(SHAPES[1], 96, 96)
    assert Tiles.of(256, 28672, 132) == Tiles(SHAPES[2], 224, 224)


def test_rows_that_it_takes() -> None:
    weight, _ = operands(ScaledFormat("U4", (1, 64)), (64, 128), torch.bfloat16)
    gpu = GPU("a GPU", (9, 0), 1 << 34, 132)
    taken = [
        kernel.takes_wide(replace(weight, columns=columns), torch.empty(rows, 128, dtype=torch.bfloat16), gpu)
        for rows, columns in ((256, 4096), (512, 4096), (768, 4096), (768, 28672), (1024, 28672), (1025, 28672))
    ]
    assert taken == [True, True, False, True, True, False]


def test_which_scales_are_short() -> None:
    from octavo.kernels.cuda.plain_codes import PlainCodes
    from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight

    form, codes = ScaledFormat("U4", (1, 64)), torch.zeros(16, 128, dtype=torch.uint8)
    for scale, is_short in ((-0.375, True), (0.3, False), (0.0, True), (2.0**18, False)):
        plain = PlainCodes(codes, torch.full((16, 2), scale))
        assert QuantizedWeight.of([plain], form, torch.bfloat16).has_short_scales == is_short


def _deal(x: Any, out: Any, *, chained: bool) -> None:
    out.copy_(x.view(len(x), -1, 4, 4, 2).transpose(2, 3).reshape(x.shape))
