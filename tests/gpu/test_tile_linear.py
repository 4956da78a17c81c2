"""Products in tiles, with everything fused around them, against torch in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, relative_error

if not ON_GPU or torch.cuda.get_device_capability()[0] != 9:
    pytest.skip("needs a GPU of Hopper's generation", allow_module_level=True)
pytest.importorskip("triton.experimental.gluon")

from octavo.kernels.ops import Activation
from octavo.kernels.triton.elementwise.norm import sum_rms_norm
from octavo.kernels.triton.linear.tile_linear import Tile, TileLinear

#: in, out: only full tiles; a partial last tile and a partial last turn; fewer turns than stages
SHAPES = [(1024, 4096), (2048, 1024), (1000, 888), (256, 1152)]
ROWS = [1, 4, 16, 17, 33, 64, 65, 100, 128, 129, 200, 256]
TILES = [Tile(64, 32, 7), Tile(64, 64, 3), Tile(128, 32, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile", TILES)
class TestTileLinear:
    @pytest.mark.parametrize("chained", [False, True])
    def test_plain(self, shape: tuple[int, int], dtype: torch.dtype, tile: Tile, chained: bool) -> None:
        for num_rows in ROWS:
            x, weight, out = operands(shape, dtype, num_rows)
            TileLinear(weight).run(x, out, tile=tile, chained=chained)
            assert relative_error(out, F.linear(x.float(), weight.float())) < TOLERANCE[dtype]

    def test_bias_and_residual(self, shape: tuple[int, int], dtype: torch.dtype, tile: Tile) -> None:
        for num_rows in ROWS:
            x, weight, out = operands(shape, dtype, num_rows)
            residual, bias = torch.randn_like(out), torch.randn(shape[1], device=DEVICE).to(dtype)
            expected = F.linear(x.float(), weight.float(), bias.float()) + residual.float()
            TileLinear(weight).run(x, residual, bias=bias, residual=residual, tile=tile, chained=True)
            assert relative_error(residual, expected) < TOLERANCE[dtype]

    @pytest.mark.parametrize("gate", ["silu", "gelu", "gelu_tanh"])
    def test_gate(self, shape: tuple[int, int], dtype: torch.dtype, tile: Tile, gate: Activation) -> None:
        act = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}[gate]
        for num_rows in ROWS:
            x, weight, out = operands(shape, dtype, num_rows)
            both = torch.cat([weight, weight.flip(0)]).contiguous()
            bias = torch.randn(2 * shape[1], device=DEVICE).to(dtype)
            TileLinear(both, gate).run(x, out, bias=bias, tile=tile, chained=True)
            gates, ups = F.linear(x.float(), both.float(), bias.float()).chunk(2, 1)
            assert relative_error(out, act(gates) * ups) < TOLERANCE[dtype]

    def test_parts_and_the_norm_that_sums_them(self, shape: tuple[int, int], dtype: torch.dtype, tile: Tile) -> None:
        split = Tile(tile.rows, tile.columns, tile.num_stages, 2)
        for num_rows in ROWS:
            x, weight, out = operands(shape, dtype, num_rows)
            residual, norm = torch.randn_like(out), torch.rand(shape[1], device=DEVICE) + 0.5
            total = F.linear(x.float(), weight.float()) + residual.float()
            parts = torch.full((2, *out.shape), torch.nan, device=DEVICE)
            TileLinear(weight).run(x, parts, tile=split, chained=True)
            sum_rms_norm(parts, residual, norm, 1e-5, out, chained=True)
            assert relative_error(residual, total) < TOLERANCE[dtype]
            assert relative_error(out, F.rms_norm(total, total.shape[1:], norm, 1e-5)) < TOLERANCE[dtype]


@pytest.mark.parametrize("num_rows", [1, 5, 16, 17, 32])
def test_what_lies_below_a_low_box_does_no_harm(num_rows: int) -> None:
    x, weight, out = operands((4096, 6144), torch.bfloat16, num_rows)
    tile = TileLinear(weight).tile_for(num_rows)
    assert tile is not None
    poison, _, nowhere = operands((4096, 6144), torch.bfloat16, tile.rows)
    TileLinear(weight).run(poison.fill_(torch.nan), nowhere, tile=tile)  # leaves NaN all over shared memory
    TileLinear(weight).run(x, out, tile=tile)
    assert relative_error(out, F.linear(x.float(), weight.float())) < TOLERANCE[torch.bfloat16]


def test_tiles_are_for_rows_and_shapes_where_they_are_faster() -> None:
    weight = torch.empty(6144, 1024, dtype=torch.bfloat16, device=DEVICE)
    assert all(TileLinear(weight).tile_for(rows) is not None for rows in (1, 16, 64, 128))
    assert TileLinear(weight).tile_for(257) is None
    assert TileLinear(weight, "silu").tile_for(128) is not None
    assert TileLinear(weight[:, :100].contiguous()).tile_for(64) is None


def operands(
    shape: tuple[int, int], dtype: torch.dtype, num_rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [M, in], some columns of a wider tensor; weight [out, in]; and room for the result, poisoned."""
    x = torch.randn(num_rows, shape[0] + 64, device=DEVICE).to(dtype)[:, : shape[0]]
    weight = (torch.randn(shape[1], shape[0], device=DEVICE) / shape[0] ** 0.5).to(dtype)
    return x, weight, torch.full((num_rows, shape[1]), torch.nan, dtype=dtype, device=DEVICE)
