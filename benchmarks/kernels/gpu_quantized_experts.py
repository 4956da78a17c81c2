"""Mixtures of experts that are codes with scales, on a GPU, at the shapes of Qwen3-30B-A3B and gpt-oss-20b.

    python -m benchmarks.kernels.gpu_quantized_experts [--shape NAME] [--scheme NAME] [--tiles] [rows ...]

A row shows the microseconds of the whole mixture by Triton's kernels, in a graph and with cold weights, the bytes of
the experts that it reads, and how much of the card's copy bandwidth that is; the two products alone; and the same
mixture, with the norm before it, by the kernels for few rows in CUDA C++. --tiles times other tiles of the grouped
products, for the table in `octavo/kernels/triton/experts/grouped_linear.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch

from benchmarks.kernels.gpu_experts import the_gpu
from octavo.kernels.cuda.plain_codes import PlainCodes
from octavo.kernels.cuda.sizes import FEW_MIXTURE_ROWS
from octavo.kernels.cuda.timing import graph_time_us, measured_limits, print_machine
from octavo.kernels.cuda_cpp.experts import FewRowExperts
from octavo.kernels.mixture import SILU, ExpertStack, Gate, Mixture, Routing
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.scaled import ScaledFormat
from octavo.kernels.tensor import RandomTensor, at_hand
from octavo.kernels.triton.coded.weight_stack import WeightStack
from octavo.kernels.triton.experts.combine import combine
from octavo.kernels.triton.experts.grouped_linear import Tile, choose_tile, grouped_linear
from octavo.kernels.triton.experts.mixture import Experts, mixture
from octavo.kernels.triton.experts.one_row import one_row_down, one_row_gate_up
from octavo.kernels.triton.experts.room import Room
from octavo.kernels.triton.experts.routing import route
from octavo.quantization.at_load import QuantisedAtLoad
from octavo.quantization.registry import DENSE

Call = Callable[[], None]
ROWS = (1, 8, 32, 256, 4096)
LAYERS = 3
SCHEMES: dict[str, ScaledFormat | None] = {
    "bf16": None,
    "fp8": ScaledFormat("F8_E4M3", (1, 0)),
    "fp8 128x128": ScaledFormat("F8_E4M3", (128, 128)),
    "int8": ScaledFormat("I8", (1, 0)),
    "int4 g128": ScaledFormat("U4", (1, 128)),
    "int4 g32 zeros": ScaledFormat("U4", (1, 32), has_zeros=True),
    "mxfp4": ScaledFormat("E2M1", (1, 32)),
}


@dataclass(frozen=True, slots=True)
class Shape:
    routing: Routing
    hidden: int
    inner: int
    gate: Gate = SILU
    has_biases: bool = False


SHAPES = {
    "qwen3-30b-a3b": Shape(Routing(num_experts=128, num_chosen=8), 2048, 768),
    "gpt-oss-20b": Shape(Routing(num_experts=32, num_chosen=4), 2880, 2880, Gate("clamped"), has_biases=True),
}


def layer_of(shape: Shape, form: ScaledFormat | None) -> Mixture:
    """Its weights are never drawn: the benchmark draws its own on the GPU."""
    scheme = DENSE if form is None else QuantisedAtLoad(form, "drawn")

    def stack(rows: int, columns: int) -> ExpertStack:
        source = at_hand(RandomTensor.undrawn("BF16", (rows, columns), 0, 0.0))
        matrix = Linear((Parameter("drawn", (rows, columns), scheme, (source,)),))
        return ExpertStack((matrix,) * shape.routing.num_experts)

    router = at_hand(RandomTensor.undrawn("BF16", (shape.routing.num_experts, shape.hidden), 0, 0.0))
    return Mixture(
        "experts", shape.routing, Linear((Parameter("router", router.shape, DENSE, (router,)),)), None,
        stack(2 * shape.inner, shape.hidden), stack(shape.hidden, shape.inner), shape.gate,
    )  # fmt: skip


def experts_of(shape: Shape, form: ScaledFormat | None, layer: Mixture) -> Experts:
    count, device = shape.routing.num_experts, torch.device("cuda")

    def drawn(*sizes: int) -> torch.Tensor:
        return torch.empty(sizes, device=device, dtype=torch.bfloat16).normal_(std=sizes[-1] ** -0.5)

    def stack(rows: int, columns: int) -> WeightStack:
        if form is None:
            return WeightStack.dense(drawn(count, rows, columns))
        parts = (PlainCodes.quantise(drawn(rows, columns), form) for _ in range(count))
        return WeightStack.coded(parts, [(rows, columns)] * count, form, device).split(count)

    def bias(rows: int) -> torch.Tensor | None:
        return drawn(count * rows) if shape.has_biases else None

    return Experts(
        *(layer, drawn(count, shape.hidden), bias(1), None),
        *(stack(2 * shape.inner, shape.hidden), bias(2 * shape.inner)),
        *(stack(shape.hidden, shape.inner), bias(shape.hidden)),
    )


def products(x: torch.Tensor, one: Experts, room: Room, tile: Tile | None = None) -> tuple[Call, Call]:
    """The two of one layer, on the choices and lists that `route` has left; as `mixture` launches them."""
    layer, chosen = one.layer, one.layer.routing.num_chosen
    pairs, inner, hidden = len(x) * chosen, layer.down.in_features, x.shape[1]
    gated, results = room.gated[: pairs * inner].view(pairs, -1), room.results[: pairs * hidden].view(pairs, -1)
    if len(x) == 1:
        given = {"num_chosen": chosen, "first_expert": 0, "chained": True}
        out = torch.empty_like(x)
        return (
            lambda: one_row_gate_up(x, one.gate_up, one.gate_up_bias, room, layer.gate, **given),
            lambda: one_row_down(one.down, one.down_bias, None, out, room, **given),
        )

    def grouped(rows: torch.Tensor, stack: WeightStack, bias: torch.Tensor | None, to: torch.Tensor, of: int) -> None:
        codes, scales = room.as_codes(rows, stack, chained=True) if len(x) > 32 else (rows, None)
        gate = layer.gate if of > 1 else None
        grouped_linear(
            codes, stack, bias, to, room, num_pairs=pairs, rows_of=of, row_scales=scales, gate=gate, tile=tile,
            chained=True,
        )  # fmt: skip

    return (
        lambda: grouped(x, one.gate_up, one.gate_up_bias, gated, chosen),
        lambda: grouped(gated, one.down, one.down_bias, results, 1),
    )


def measure(label: str, rows: int, layers: list[Experts], room: Room, *, tries_tiles: bool) -> None:
    shape = layers[0].layer
    x = torch.randn(rows, shape.gate_up.in_features, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(x)

    def whole(one: Experts) -> Call:
        return lambda: mixture(x, None, out, one, room, chained=True)

    us = graph_time_us([whole(one) for one in layers])
    one = layers[0]
    route(x, one.router, one.router_bias, None, shape, room, has_lists=True, is_fixed=False, chained=False)
    chosen = len(torch.unique(room.ids[: rows * shape.routing.num_chosen]))
    num_bytes = (one.gate_up.num_bytes + one.down.num_bytes) * chosen // shape.routing.num_experts
    share = num_bytes / us * 1e6 / measured_limits()[0]
    parts = [graph_time_us([products(x, each, room)[place] for each in layers]) for place in (0, 1)]
    print(
        f"{label:32} {rows:5} rows, {chosen:3} experts: {us:8.1f} us  {num_bytes / 1e6:7.1f} MB  {share:6.1%} of copy  "
        f"gate_up {parts[0]:8.1f}  down {parts[1]:8.1f}",
        end="",
        flush=True,
    )
    few = graph_time_us(few_rows(x, out, layers, room)) if rows <= FEW_MIXTURE_ROWS else 0.0
    print(f"  CUDA C++ {few:8.1f} us {num_bytes / few * 1e6 / measured_limits()[0]:6.1%}" if few else "", flush=True)
    if tries_tiles and rows > 1:
        for place in (0, 1):
            _try_tiles(rows, x, layers, room, place)
    combine(None, out, room, num_chosen=shape.routing.num_chosen, first_expert=0, num_own=shape.num_own, chained=False)


def few_rows(x: torch.Tensor, out: torch.Tensor, layers: list[Experts], room: Room) -> list[Call]:
    norm, found = torch.ones(x.shape[1], device=x.device), list[Call]()
    for one in layers:
        kernels = FewRowExperts(one, room, the_gpu(), x.dtype)
        found.append(partial(kernels.run, x, None, out, norm=norm))
    return found


def _try_tiles(rows: int, x: torch.Tensor, layers: list[Experts], room: Room, place: int) -> None:
    one, times = layers[0], {}
    pairs, experts = rows * one.layer.routing.num_chosen, one.layer.routing.num_experts
    code = one.gate_up.code
    is_fp8 = rows > 32 and code == "F8_E4M3" and one.gate_up.scales_outputs
    first = choose_tile(pairs, experts, is_gated=place == 0, code=code, is_fp8=is_fp8)
    for m, n, k, warps, stages in product((16, 32, 64, 128), (32, 64, 128, 256), (64, 128, 256), (4, 8), (3, 4)):
        tile = Tile(m, n, k, warps, stages)
        if m * n > 128 * 256 or (warps == 8) != (m * n >= 8192):
            continue
        try:
            times[tile] = graph_time_us([products(x, each, room, tile)[place] for each in layers])
        except Exception as error:  # a tile that does not fit the chip is not a candidate
            print(tile, str(error)[:80])
    best = sorted((us, str(tile)) for tile, us in times.items())[:4]
    print(
        f"    {'gate_up' if place == 0 else 'down'}: chosen {first} {times.get(first, float('nan')):.1f}; best {best}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=int)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--scheme", choices=SCHEMES)
    parser.add_argument("--tiles", action="store_true")
    given = parser.parse_args()
    rows = given.rows or ROWS
    print_machine()
    for name, shape in SHAPES.items():
        for scheme, form in SCHEMES.items():
            wanted = given.shape in (None, name) and given.scheme in (None, scheme)
            if not wanted or (form is not None and form.block[1] and shape.hidden % form.block[1]):
                continue  # groups of 128 do not divide gpt-oss's 2880 inputs
            layer = layer_of(shape, form)
            layers = [experts_of(shape, form, layer) for _ in range(LAYERS)]
            room = Room.of([layer], max(rows), torch.bfloat16, torch.device("cuda"), the_gpu())
            assert room is not None, "a mixture has room"
            for count in rows:
                measure(f"{name} {scheme}", count, layers, room, tries_tiles=given.tiles)


if __name__ == "__main__":
    main()
