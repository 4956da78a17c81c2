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
from octavo.kernels.cuda_cpp import wide_int4 as kernel  # noqa: E402
from octavo.kernels.cuda_cpp.wide_int4 import SHAPES, Exchange, Split  # noqa: E402
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
        (SHAPES[3], True, [(70, (304, 128)), (33, (48, 384))]),
        (SHAPES[7], False, [(161, (200, 384))]),
    ],
    ids=lambda value: f"{value.rows}x{value.outputs}" if isinstance(value, kernel.Shape) else None,
)
def test_it_equals_torch(
    shape: kernel.Shape, has_zeros: bool, cases: list[tuple[int, tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All splits, of rows and outputs that do not fill a tile; zero points, or short scales; a bias."""
    num_blocks = FEW_BLOCKS.num_multiprocessors
    sums = torch.full((num_blocks * shape.rows * shape.outputs,), torch.nan)
    exchange = Exchange(sums, torch.zeros(1 + num_blocks, dtype=torch.int32))
    for rows, size in cases:
        form = ScaledFormat("U4", (1, 64), has_zeros=has_zeros)
        weight, dense = operands(form, size, torch.bfloat16)
        if not has_zeros:
            factor = weight.scales.bfloat16().float() / weight.scales
            weight = replace(weight, scales=weight.scales * factor, has_short_scales=True)
            dense *= factor.permute(0, 3, 2, 1).reshape(len(dense), -1).repeat_interleave(64, 1)
        x, bias = torch.randn(rows, size[1]).bfloat16(), torch.randn(len(dense)).bfloat16()
        expected = x.float() @ dense.T + bias.float()
        for split in Split.all_of(shape, rows, len(dense), size[1], num_blocks):
            monkeypatch.setattr(Split, "of", lambda *_, split=split: split)
            out = torch.full((rows, len(dense)), torch.nan, dtype=torch.bfloat16)
            room = torch.full((rows * size[1] * (1 if split.blocks == 3 else 2),), torch.nan, dtype=torch.bfloat16)
            kernel.wide_int4(x, weight, bias, out, room, exchange, gpu=FEW_BLOCKS)
            assert relative_error(out, expected) < 6e-3, split


@pytest.mark.parametrize(
    ("rows", "columns", "depth"), [(512, 28672, 4096), (512, 4096, 14336), (384, 28672, 4096), (131, 608, 128)]
)
def test_blocks_are_busy(rows: int, columns: int, depth: int) -> None:
    for shape in SHAPES:
        for split in Split.all_of(shape, rows, columns, depth, 132):
            assert split.blocks <= 132
            assert split.blocks <= split.tiles * (depth // shape.inputs), "no block is idle"
            shared = split.tiles - split.whole_turns * split.blocks
            assert shared >= 0
            assert shared == 0 or shared >= split.blocks or split.whole_turns == 0


def test_splits_of_a_large_model() -> None:
    assert Split.of(32, 28672, 4096, 132) == Split(SHAPES[1], 112, 112)
    assert Split.of(384, 4096, 14336, 132) == Split(SHAPES[7], 64, 128)
    whole = Split.of(1024, 28672, 4096, 132)
    assert (whole, whole.whole_turns) == (Split(SHAPES[5], 896, 132), 5)


def test_which_scales_are_short() -> None:
    from octavo.kernels.cuda.plain_codes import PlainCodes
    from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight

    form, codes = ScaledFormat("U4", (1, 64)), torch.zeros(16, 128, dtype=torch.uint8)
    for scale, is_short in ((-0.375, True), (0.3, False), (0.0, True), (2.0**18, False)):
        plain = PlainCodes(codes, torch.full((16, 2), scale))
        assert QuantizedWeight.of([plain], form, torch.bfloat16).has_short_scales == is_short


def _deal(x: Any, out: Any, *, chained: bool) -> None:
    out.copy_(x.view(len(x), -1, 4, 4, 2).transpose(2, 3).reshape(x.shape))
