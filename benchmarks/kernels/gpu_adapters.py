"""Adapters behind a product on a GPU: what their two launches add to it, at the shapes of Llama-3.1-8B.

    python -m benchmarks.kernels.gpu_adapters [--slots 32] [--rank 16] [rows ...]

A row shows microseconds of a layer's four products alone, with adapters row by row (`few_adapted_rows.py`) and in tiles
(`adapters.py`), in chained graphs over copies of the weights that exceed the L2 cache. Row i has adapter i modulo the
slots. floor: reading the adapters at the card's copy bandwidth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from octavo.kernels.cuda.sizes import most_tiles, shrink_parts
from octavo.kernels.cuda.timing import graph_time_us, measured_limits, print_machine
from octavo.kernels.ops import Activation
from octavo.kernels.triton.linear import adapters, few_adapted_rows
from octavo.kernels.triton.linear.adapter_rows import RowLists
from octavo.kernels.triton.linear.skinny_linear import choose_tiling, library_linear, skinny_linear
from octavo.kernels.triton.linear.slot_matrices import SlotMatrices
from octavo.kernels.triton.linear.tile_linear import TileLinear

Call = Callable[[], None]
COPIES = 4
#: inputs, and where the parts' outputs end
MODULES = {
    "qkv": (4096, (4096, 5120, 6144)), "o": (4096, (4096,)), "gate_up": (4096, (14336, 28672)), "down": (14336, (4096,))
}  # fmt: skip


class Layer:
    """A product, and its adapters."""

    def __init__(self, name: str, rows: int, slots: int, rank: int) -> None:
        depth, ends = MODULES[name]
        self.name, self.x, self.y = name, _numbers(rows, depth), _numbers(rows, ends[-1])
        self.weight = _numbers(ends[-1], depth)
        self.tiles = TileLinear(self.weight)
        a, b = _numbers(slots, len(ends) * rank, depth), _numbers(slots, ends[-1], rank)
        self.module = SlotMatrices(a, b, torch.full((slots,), rank, dtype=torch.int32, device="cuda"), ends)
        room = len(ends) * rank * max(4 * rows, min(rows, 512) * 128)
        self.shrunk = torch.empty(room, dtype=torch.float32, device="cuda")
        self.gated: tuple[Activation, torch.Tensor] | None = None
        if name == "gate_up":
            self.gated = "silu", _numbers(rows, ends[-1] // 2)

    def multiply(self) -> None:
        rows, (columns, depth) = len(self.x), self.weight.shape
        tiling, tile = choose_tiling(rows, columns, depth), self.tiles.tile_for(rows)
        if rows > 1 and tile is not None:
            self.tiles.run(self.x, self.y, tile=tile, chained=True)
        elif tiling is not None:
            skinny_linear(self.x, self.weight, self.y, tiling=tiling, chained=True)
        else:
            library_linear(self.x, self.weight, self.y, None)

    def add_by_rows(self, slots: torch.Tensor) -> None:
        few_adapted_rows.shrink_rows(self.x, self.module, slots, self.shrunk, chained=True)
        parts = shrink_parts(*self.x.shape)
        given = self.shrunk, parts, self.module, slots, self.y
        few_adapted_rows.expand_rows(*given, gated=self.gated, chained=True)

    def add_in_tiles(self, lists: RowLists) -> None:
        tiling = adapters.choose_tiling(len(self.x), is_fixed=False)
        adapters.shrink(self.x, self.module, lists, self.shrunk, tiling, chained=True)
        adapters.expand(self.shrunk, self.module, lists, self.y, tiling, gated=self.gated, chained=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="*", default=[1, 8, 32, 64, 128, 256, 2048, 8192])
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()
    print_machine()
    print(f"{args.slots} slots of rank {args.rank}, microseconds")
    print(f"{'rows':>6} {'module':8}{'product':>9}{'by rows':>9}{'in tiles':>9}{'floor':>8}")
    for rows in args.rows:
        totals = torch.zeros(4)
        for name in MODULES:
            found = measured(name, rows, args.slots, args.rank)
            totals += torch.tensor(found)
            show(rows, name, found)
        show(rows, "all", totals.tolist())


def measured(name: str, rows: int, slots: int, rank: int) -> list[float]:
    layers, lists = layers_of(name, rows, slots, rank)
    module = layers[0].module
    read = min(rows, slots) * rank * (module.a.shape[1] // rank * module.a.shape[2] + module.b.shape[1]) * 2
    alone = graph_time_us([layer.multiply for layer in layers])
    few = timed(layers, lambda layer: layer.add_by_rows(lists.slots)) if rows <= 256 else float("nan")
    return [alone, few, timed(layers, lambda layer: layer.add_in_tiles(lists)), read / measured_limits()[0] * 1e6]


def layers_of(name: str, rows: int, slots: int, rank: int) -> tuple[list[Layer], RowLists]:
    shapes = (slots + 2,), (slots + 1, rows), (2, most_tiles(rows, 16, slots))
    zeros = [torch.zeros(shape, dtype=torch.int32, device="cuda") for shape in shapes]
    lists = RowLists(torch.arange(rows, dtype=torch.int32, device="cuda") % slots, *zeros)
    lists.make(rows, adapters.choose_tiling(rows, is_fixed=False).rows, chained=False)
    return [Layer(name, rows, slots, rank) for _ in range(COPIES)], lists


def timed(layers: list[Layer], add: Callable[[Layer], None]) -> float:
    def call(layer: Layer) -> None:
        layer.multiply()
        add(layer)

    return graph_time_us([lambda layer=layer: call(layer) for layer in layers])  # type: ignore[misc]


def show(rows: int, name: str, found: list[float]) -> None:
    alone, few, tiles, floor = found
    print(f"{rows:6} {name:8}{alone:9.1f}{few - alone:+9.1f}{tiles - alone:+9.1f}{floor:8.1f}", flush=True)


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda") * 0.05


if __name__ == "__main__":
    main()
