"""Many rows times codes by the GPU's own kernel, on the CPU: `block_on_cpu/ptx.cuh` has its threads take turns.

tests/gpu/test_wide_codes.py asks the same of a GPU, for more shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.cuda.plain_codes import PlainCodes  # noqa: E402
from octavo.kernels.cuda_cpp import wide_codes as kernel  # noqa: E402
from octavo.kernels.cuda_cpp.quantized_weight import QuantizedWeight  # noqa: E402
from octavo.kernels.cuda_cpp.wide_codes import SHAPES, Exchange, Split  # noqa: E402
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
    ("shape", "form", "dtype", "cases"),
    [
        (SHAPES[3], ScaledFormat("U4", (1, 64), has_zeros=True), torch.bfloat16, [(70, (304, 128)), (33, (48, 384))]),
        (SHAPES[7], ScaledFormat("U4", (1, 64)), torch.bfloat16, [(161, (200, 384))]),
        (SHAPES[4], ScaledFormat("U4", (1, 128), has_zeros=True), torch.float16, [(70, (152, 256))]),
        (SHAPES[0], ScaledFormat("I8", (1, 0)), torch.bfloat16, [(20, (136, 384))]),
        (SHAPES[7], ScaledFormat("I8", (1, 64)), torch.float16, [(161, (72, 128))]),
        (SHAPES[3], ScaledFormat("F8_E4M3", (128, 128)), torch.bfloat16, [(40, (256, 384))]),
        (SHAPES[7], ScaledFormat("F8_E4M3", (128, 128)), torch.bfloat16, [(161, (128, 256))]),
    ],
    ids=lambda value: f"{value.rows}x{value.outputs}" if isinstance(value, kernel.Shape) else None,
)
def test_it_equals_torch(
    shape: kernel.Shape,
    form: ScaledFormat,
    dtype: Any,
    cases: list[tuple[int, tuple[int, int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All splits, of rows and outputs that do not fill a tile; zero points, or short scales; a bias."""
    num_blocks = FEW_BLOCKS.num_multiprocessors
    sums = torch.full((num_blocks * shape.rows * shape.outputs,), torch.nan)
    exchange = Exchange(sums, torch.zeros(1 + num_blocks, dtype=torch.int32))
    for rows, size in cases:
        weight, dense = _operands(form, size, dtype)
        x, bias = torch.randn(rows, size[1]).to(dtype), torch.randn(len(dense)).to(dtype)
        expected = x.float() @ dense.T + bias.float()
        for split in Split.all_of(shape, rows, len(dense), size[1], num_blocks):
            monkeypatch.setattr(Split, "of", lambda *_, split=split: split)
            out = torch.full((rows, len(dense)), torch.nan, dtype=dtype)
            room = torch.full((rows * size[1] * (1 if split.blocks == 3 else 2),), torch.nan, dtype=dtype)
            kernel.wide_codes(x, weight, bias, out, room, exchange, gpu=FEW_BLOCKS)
            assert relative_error(out, expected) < (6e-3 if dtype == torch.bfloat16 else 1e-3), split


def _operands(form: ScaledFormat, size: tuple[int, int], dtype: Any) -> tuple[QuantizedWeight, Any]:
    """With short scales of groups if there are no zero points."""
    weight, dense = operands(form, size, dtype)
    if not weight.group or form.has_zeros:
        return weight, dense
    factor = weight.scales.to(dtype).float() / weight.scales
    dense *= factor.permute(0, 3, 2, 1).reshape(len(dense), -1).repeat_interleave(form.block[1], 1)
    return replace(weight, scales=weight.scales * factor, has_short_scales=True), dense


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


@pytest.mark.parametrize(
    ("dtype", "scale", "is_short", "raised"),
    [
        (torch.bfloat16, -0.375, True, 1),
        (torch.bfloat16, 0.3, False, 1),
        (torch.bfloat16, 0.0, True, 1),
        (torch.bfloat16, 2.0**18, False, 1),
        (torch.float16, -1.0009765625, True, 1),
        (torch.float16, 0.3, False, 1),
        (torch.float16, 0.0, True, 1),
        (torch.float16, 2.0**-33, True, 1),
        (torch.float16, 100.0, True, 2),
    ],
)
def test_which_scales_are_short(dtype: Any, scale: float, is_short: bool, raised: float) -> None:
    form, codes = ScaledFormat("U4", (1, 64)), torch.zeros(16, 128, dtype=torch.uint8)
    weight = QuantizedWeight.of([PlainCodes(codes, torch.full((16, 2), scale))], form, dtype)
    assert (weight.has_short_scales, weight.raised) == (is_short, raised)


@pytest.mark.usefixtures("_runs_here")
def test_large_scales_of_float16_are_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that fit into float16 though numbers times what makes them integers do not."""
    form, dense = ScaledFormat("U4", (1, 64)), torch.zeros(128, 128)
    dense[:, ::7] = 3 * 300.0
    codes = (dense / 300 + 8).to(torch.uint8)
    weight = QuantizedWeight.of([PlainCodes(codes, torch.full((128, 2), 300.0))], form, torch.float16)
    x, out = torch.randn(8, 128).half(), torch.empty(8, 128, dtype=torch.float16)
    exchange = Exchange(torch.empty(3 * 32 * 128), torch.zeros(4, dtype=torch.int32))
    monkeypatch.setattr(Split, "of", lambda *_: Split(SHAPES[0], 1, 1))
    kernel.wide_codes(x, weight, None, out, torch.empty(8 * 128, dtype=torch.float16), exchange, gpu=FEW_BLOCKS)
    assert relative_error(out, x.float() @ dense.T) < 1e-3


def _deal(x: Any, out: Any, *, chained: bool) -> None:
    out.copy_(x.view(len(x), -1, 4, 4, 2).transpose(2, 3).reshape(x.shape))
