"""A product, what adapters add to it, and the norm of its sum with the residual: one instruction for few rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from octavo.kernels.cuda.step import DeviceStep
from octavo.kernels.triton.elementwise import norm
from octavo.kernels.triton.linear.skinny_linear import choose_tiling, library_linear, skinny_linear

if TYPE_CHECKING:
    from octavo.kernels.cuda.quantized_product import Product
    from octavo.kernels.triton.linear.tile_linear import TileLinear

#: (step, x, residual, out, total): `out` is the norm of the sum, `total` the sum in the residual's memory
NormedLaunch = Callable[[DeviceStep, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
#: (step, x, y): add what adapters make of x to y, behind the product of x
Adapt = Callable[[DeviceStep | None, torch.Tensor, torch.Tensor], None]


def normed_product(
    matrix: torch.Tensor,
    norm_H: torch.Tensor,
    eps: float,
    *,
    tiles: TileLinear | None,
    room: torch.Tensor | None,
    adapt: Adapt | None,
    chained: bool,
) -> NormedLaunch:
    """room: for the partial sums of tiles. Adapters add to the residual's memory, too."""

    def launch(
        step: DeviceStep, x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor, total: torch.Tensor
    ) -> None:
        tile = None if tiles is None else tiles.tile_for(len(x), in_parts=True)
        tiling = choose_tiling(len(x), out.shape[1], x.shape[1])
        parts = out
        if tiles is not None and tile is not None:
            assert room is not None, "a program with tiles has room for their parts"
            parts = room[: tile.split * out.numel()].view(tile.split, *out.shape)
            tiles.run(x, parts, tile=tile, chained=chained)
        elif tiling is not None:
            skinny_linear(x, matrix, total, residual=total, tiling=tiling, chained=chained)
        else:
            library_linear(x, matrix, out, None)
        if adapt is not None:
            adapt(step, x, total)
        if tile is not None:
            norm.sum_rms_norm(parts, total, norm_H, eps, out, chained=chained)
        elif tiling is not None:
            norm.rms_norm(total, norm_H, eps, out, chained=chained)
        else:
            norm.add_rms_norm(out, total, norm_H, eps, out, chained=chained)

    return launch


def normed_quantized(
    product: Product, norm_H: torch.Tensor, eps: float, *, room: torch.Tensor | None, adapt: Adapt | None, chained: bool
) -> NormedLaunch:
    def launch(
        step: DeviceStep, x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor, total: torch.Tensor
    ) -> None:
        if adapt is None:
            product.run_add_rms_norm(x, total, norm_H, eps, out, room)
            return
        product.run(x, out)
        adapt(step, x, total)
        norm.add_rms_norm(out, total, norm_H, eps, out, chained=chained)

    return launch
