"""A mixture of experts on a GPU, launch by launch, at the shape of Qwen3-30B-A3B, in graphs and with cold weights.

    python -m benchmarks.kernels.gpu_experts [--sweep] [rows ...]

A row shows the microseconds of the whole mixture and of each launch, and how near it comes to reading each chosen
expert once (TB/s) or to the matrix units (TFLOP/s). --sweep times every tile of the grouped products, for the table in
`octavo/kernels/triton/experts/grouped_linear.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product

import torch

from octavo.kernels.cuda.driver import GPU, find_gpu
from octavo.kernels.cuda.timing import graph_time_us, print_machine
from octavo.kernels.mixture import ExpertStack, Mixture, Routing
from octavo.kernels.tensor import RandomTensor
from octavo.kernels.triton.coded.weight_stack import WeightStack
from octavo.kernels.triton.experts.combine import combine
from octavo.kernels.triton.experts.grouped_linear import Tile, choose_tile, grouped_linear
from octavo.kernels.triton.experts.mixture import Experts, mixture
from octavo.kernels.triton.experts.one_row import one_row_down, one_row_gate_up
from octavo.kernels.triton.experts.room import Room
from octavo.kernels.triton.experts.routing import route
from octavo.testing.made_parameters import linear

ROUTING = Routing(num_experts=128, num_chosen=8)
HIDDEN, INNER, LAYERS = 2048, 768, 3
Call = Callable[[], None]
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192)
TILES = [
    Tile(m, n, k, w, s)
    for m, n, k, w, s in product((16, 32, 64, 128), (32, 64, 128, 256), (64, 128, 256), (4, 8), (2, 3, 4))
    if w == (8 if m * n >= 8192 else 4) and (m + 2 * n) * k * s * 2 <= 220 << 10
]


def shapes() -> Mixture:
    """Its weights are never drawn: a benchmark draws its own on the GPU."""

    def stack(rows: int, columns: int) -> ExpertStack:
        matrix = RandomTensor.undrawn("BF16", (rows, columns), 0, 0.0)
        return ExpertStack(tuple(linear(matrix) for _ in range(ROUTING.num_experts)))

    router = linear(RandomTensor.undrawn("BF16", (ROUTING.num_experts, HIDDEN), 0, 0.0))
    return Mixture("experts", ROUTING, router, None, stack(2 * INNER, HIDDEN), stack(HIDDEN, INNER))


def experts(layer: Mixture) -> list[Experts]:

    def drawn(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_(std=shape[-1] ** -0.5)

    count = ROUTING.num_experts
    return [
        Experts(
            *(layer, drawn(count, HIDDEN), None, None),
            *(WeightStack.dense(drawn(count, 2 * INNER, HIDDEN)), None),
            *(WeightStack.dense(drawn(count, HIDDEN, INNER)), None),
        )
        for _ in range(LAYERS)
    ]


def grouped(x: torch.Tensor, one: Experts, room: Room, is_gated: bool, tile: Tile | None = None) -> Call:
    """The first or the second product, on the lists that `route` has left."""
    pairs = len(x) * ROUTING.num_chosen
    gated, results = room.gated[: pairs * INNER].view(pairs, -1), room.results[: pairs * HIDDEN].view(pairs, -1)
    source, weight, target = (x, one.gate_up, gated) if is_gated else (gated, one.down, results)
    gate, rows_of = (one.layer.gate, ROUTING.num_chosen) if is_gated else (None, 1)
    return lambda: grouped_linear(
        source, weight, None, target, room, num_pairs=pairs, rows_of=rows_of, gate=gate, tile=tile, chained=True
    )


def routed(x: torch.Tensor, one: Experts, room: Room) -> Call:
    """With a launch that sets the counts to zero, as the end of a mixture does."""

    def call() -> None:
        room.counts.zero_()
        route(x, one.router, None, None, one.layer, room, has_lists=len(x) > 1, is_fixed=False, chained=True)

    return call


def launch(x: torch.Tensor, one: Experts, room: Room, is_gated: bool) -> Call:
    if len(x) > 1:
        return grouped(x, one, room, is_gated)
    gate, out, num_chosen = one.layer.gate, torch.empty_like(x), ROUTING.num_chosen
    if is_gated:
        return lambda: one_row_gate_up(
            x, one.gate_up, None, room, gate, num_chosen=num_chosen, first_expert=0, chained=True
        )
    return lambda: one_row_down(one.down, None, None, out, room, num_chosen=num_chosen, first_expert=0, chained=True)


def measure(rows: int, layers: list[Experts], room: Room) -> None:
    x = torch.randn(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(x)

    def whole(one: Experts) -> Call:
        return lambda: mixture(x, None, out, one, room, chained=True)

    us = graph_time_us([whole(one) for one in layers])
    fill(x, layers[0], room)
    chosen = len(torch.unique(room.ids[: rows * ROUTING.num_chosen]))
    each = 3 * HIDDEN * INNER
    speeds = f"{chosen * each * 2 / us / 1e6:5.2f} TB/s {rows * ROUTING.num_chosen * each * 2 / us / 1e6:6.1f} TFLOP/s"
    parts = [graph_time_us([launch(x, one, room, is_gated) for one in layers]) for is_gated in (True, False)]
    router = graph_time_us([routed(x, one, room) for one in layers])
    times = f"router {router:6.1f}  gate_up {parts[0]:8.1f}  down {parts[1]:8.1f}"
    print(f"{rows:6} rows, {chosen:3} experts: {us:8.1f} us  {speeds}  {times}", flush=True)
    empty(out, room)


def sweep(rows: int, layers: list[Experts], room: Room) -> None:
    x = torch.randn(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
    fill(x, layers[0], room)
    for is_gated in (True, False):
        times = {}
        chosen = choose_tile(rows * ROUTING.num_chosen, ROUTING.num_experts, is_gated=is_gated)
        for tile in (chosen, *TILES):
            try:
                times[tile] = graph_time_us([grouped(x, one, room, is_gated, tile) for one in layers])
            except Exception as error:  # a tile that does not fit the chip is not a candidate
                print(tile, str(error)[:80])
        best = sorted((us, str(tile)) for tile, us in times.items())[:4]
        print(f"{rows:6} rows, {'gate_up' if is_gated else 'down'}: {times[chosen]:.1f} us; best {best}", flush=True)
    empty(torch.empty_like(x), room)


def fill(x: torch.Tensor, one: Experts, room: Room) -> None:
    """Leave the choices and lists of one layer."""
    route(x, one.router, None, None, one.layer, room, has_lists=True, is_fixed=False, chained=False)


def empty(out: torch.Tensor, room: Room) -> None:
    combine(None, out, room, num_chosen=ROUTING.num_chosen, first_expert=0, num_own=ROUTING.num_experts, chained=False)


def the_gpu() -> GPU:
    found = find_gpu(0)
    assert found is not None, "a benchmark of a GPU needs one"
    return found


def main() -> None:
    rows = [int(each) for each in sys.argv[1:] if each.isdigit()] or ROWS
    print_machine()
    layer = shapes()
    layers, room = experts(layer), Room.of([layer], max(rows), torch.bfloat16, torch.device("cuda"), the_gpu())
    assert room is not None
    for count in rows:
        (sweep if "--sweep" in sys.argv else measure)(count, layers, room)


if __name__ == "__main__":
    main()
