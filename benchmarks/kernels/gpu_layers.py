"""A whole decode step of a dense model with random weights, as one CUDA graph: ms per step, by kernel.

    python -m benchmarks.kernels.gpu_layers [0.6B] [8B]

Four ways through a layer; attention is two kernels, attention and the join of its partial results:

    fused    norm+qkv | rotary+write+attention | o+residual | norm+gate_up+silu | down+residual       to 4 rows
    mixed    norm | qkv | attention | o+residual | norm | gate_up | silu | down+residual              skinny or cuBLAS
    tiled    qkv | attention | o in parts | sum+norm | gate_up+silu | down in parts | sum+norm        to 256 rows
    library  add+norm | qkv | attention | o | add+norm | gate_up | silu | down                        all cuBLAS
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks.kernels.gpu_attention import CUDA, Case, make_case, make_pool
from octavo.kernels.cuda.sizes import MAX_SPLIT
from octavo.kernels.cuda.timing import Call, graph_time_us, print_machine
from octavo.kernels.cuda.weights import DeviceWeights
from octavo.kernels.triton.attention.decode_attention import decode_attention
from octavo.kernels.triton.attention.memory import DecodeWorkspace
from octavo.kernels.triton.attention.plan import make_plan
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform
from octavo.kernels.triton.elementwise import norm
from octavo.kernels.triton.elementwise.elementwise import embedding, gated_activation
from octavo.kernels.triton.linear.skinny_linear import choose_tiling, skinny_linear
from octavo.kernels.triton.linear.tile_linear import TileLinear

BF16 = torch.bfloat16
Way = Literal["fused", "mixed", "tiled", "library"]


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    dim: int = 128


SHAPES = {"0.6B": Shape(28, 1024, 16, 8, 3072, 151936), "8B": Shape(32, 4096, 32, 8, 14336, 128256)}


class Step:
    """A model's weights, one step's buffers, and the step as calls in order."""

    def __init__(self, shape: Shape, batch: int, context: int, chained: bool) -> None:
        self.shape, self.batch, self.chained = shape, batch, chained
        self.case: Case = make_case([context] * batch, [1] * batch, shape.heads, shape.kv_heads, shape.dim, 1)
        self.pools = [self.case.pool]
        for _ in range(shape.layers - 1):
            self.pools.append(make_pool(self.case.layout, self.case.layer))
        self.transform = HeadTransform.of(self.case.layer, DeviceWeights(CUDA, torch.bfloat16))
        self.workspace = DecodeWorkspace.allocate(batch, [self.case.layer], CUDA)
        width = (shape.heads + 2 * shape.kv_heads) * shape.dim
        self.weights = [
            [
                self._weight(width, shape.hidden),
                self._weight(shape.hidden, shape.heads * shape.dim),
                self._weight(2 * shape.intermediate, shape.hidden),
                self._weight(shape.hidden, shape.intermediate),
            ]
            for _ in range(shape.layers)
        ]
        self.tiles = [
            (TileLinear(qkv), TileLinear(o), TileLinear(gate_up, "silu"), TileLinear(down))
            for qkv, o, gate_up, down in self.weights
        ]
        self.parts_room = torch.zeros(MAX_SPLIT, batch, shape.hidden, device=CUDA)
        self.head = self._weight(shape.vocab, shape.hidden)
        self.norm_weight = torch.ones(shape.hidden, device=CUDA)
        self.ids = torch.randint(shape.vocab, (batch,), device=CUDA, dtype=torch.int32)
        self.x, self.y = self._room(shape.hidden), self._room(shape.hidden)
        self.qkv, self.attended = self._room(width), self._room(shape.heads * shape.dim)
        self.gate_up, self.gated = self._room(2 * shape.intermediate), self._room(shape.intermediate)
        self.logits = self._room(shape.vocab)

    def _weight(self, rows: int, cols: int) -> torch.Tensor:
        return torch.randn(rows, cols, device=CUDA, dtype=BF16) * (0.5 / cols**0.5)

    def _room(self, width: int) -> torch.Tensor:
        return torch.zeros(self.batch, width, device=CUDA, dtype=BF16)

    def begin(self) -> None:
        make_plan(
            self.case.plan, positions=self.case.positions, block_table=self.case.tables[0], block_size=16,
            chained=self.chained, **self.case.step,
        )  # fmt: skip
        embedding(self.head, self.ids, self.x, chained=self.chained)

    def attend(self, i: int) -> None:
        decode_attention(
            self.qkv, self.attended, self.case.layer, self.pools[i], self.case.plan, self.workspace,
            block_table=self.case.tables[0], num_multiprocessors=132, transform=self.transform, chained=self.chained,
            query_start_loc=self.case.step["query_start_loc"],
        )  # fmt: skip

    def linear(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        tiling = choose_tiling(len(x), len(weight), weight.shape[1])
        if tiling is not None:
            skinny_linear(x, weight, out, residual=out if add else None, tiling=tiling, chained=self.chained)
        elif add:
            torch.addmm(out, x, weight.t(), out=out)
        else:
            torch.mm(x, weight.t(), out=out)

    def fused_parts(self, i: int) -> dict[str, Call]:
        qkv, o, gate_up, down = self.weights[i]
        before = {"norm_weight": self.norm_weight, "chained": self.chained}
        qkv_tiling = choose_tiling(self.batch, *qkv.shape)
        gate_tiling = choose_tiling(self.batch, self.shape.intermediate, self.shape.hidden)
        assert qkv_tiling is not None, "a fused layer is for shapes with vector tilings"
        assert gate_tiling is not None, "a fused layer is for shapes with vector tilings"
        return {
            "qkv": lambda: skinny_linear(self.x, qkv, self.qkv, tiling=qkv_tiling, **before),
            "attention": lambda: self.attend(i),
            "o": lambda: self.linear(self.attended, o, self.x, add=True),
            "gate_up": lambda: skinny_linear(self.x, gate_up, self.gated, gate="silu", tiling=gate_tiling, **before),
            "down": lambda: self.linear(self.gated, down, self.x, add=True),
        }

    def mixed_parts(self, i: int) -> dict[str, Call]:
        qkv, o, gate_up, down = self.weights[i]
        normed = lambda: norm.rms_norm(self.x, self.norm_weight, 1e-6, self.y, chained=self.chained)  # noqa: E731
        return {
            "norm1": normed,
            "qkv": lambda: self.linear(self.y, qkv, self.qkv),
            "attention": lambda: self.attend(i),
            "o": lambda: self.linear(self.attended, o, self.x, add=True),
            "norm2": normed,
            "gate_up": lambda: self.linear(self.y, gate_up, self.gate_up),
            "silu": lambda: gated_activation(self.gate_up, "silu", self.gated, chained=self.chained),
            "down": lambda: self.linear(self.gated, down, self.x, add=True),
        }

    def tiled_parts(self, i: int) -> dict[str, Call]:
        """The library's products, where there is no tile."""
        tiles, parts = self.tiles[i], self.library_parts(i)
        qkv, gate_up = tiles[0].tile_for(self.batch), tiles[2].tile_for(self.batch)
        if qkv is not None:
            parts["qkv"] = lambda: tiles[0].run(self.y, self.qkv, tile=qkv, chained=self.chained)
        if gate_up is not None:
            parts["gate_up"] = lambda: tiles[2].run(self.y, self.gated, tile=gate_up, chained=self.chained)
            del parts["silu"]
        for name, norm_name, x, product in (
            ("o", "norm2", self.attended, tiles[1]),
            ("down", "norm1", self.gated, tiles[3]),
        ):
            tile = product.tile_for(self.batch, in_parts=True)
            if tile is not None:
                room = self.parts_room[: tile.split]
                parts[name] = lambda t=tile, x=x, p=product, r=room: p.run(x, r, tile=t, chained=self.chained)
                parts[norm_name] = lambda r=room: norm.sum_rms_norm(
                    r, self.x, self.norm_weight, 1e-6, self.y, chained=self.chained
                )
        return parts

    def library_parts(self, i: int) -> dict[str, Call]:
        qkv, o, gate_up, down = self.weights[i]
        join = lambda: norm.add_rms_norm(self.y, self.x, self.norm_weight, 1e-6, self.y, chained=self.chained)  # noqa: E731
        return {
            "norm1": join,
            "qkv": lambda: torch.mm(self.y, qkv.t(), out=self.qkv),
            "attention": lambda: self.attend(i),
            "o": lambda: torch.mm(self.attended, o.t(), out=self.y),
            "norm2": join,
            "gate_up": lambda: torch.mm(self.y, gate_up.t(), out=self.gate_up),
            "silu": lambda: gated_activation(self.gate_up, "silu", self.gated, chained=self.chained),
            "down": lambda: torch.mm(self.gated, down.t(), out=self.y),
        }

    def parts(self, way: Way, i: int) -> dict[str, Call]:
        ways = {"fused": self.fused_parts, "mixed": self.mixed_parts}
        return (ways | {"tiled": self.tiled_parts, "library": self.library_parts})[way](i)

    def end(self, way: Way) -> None:
        if way in ("library", "tiled"):
            norm.add_rms_norm(self.y, self.x, self.norm_weight, 1e-6, self.y, chained=self.chained)
            torch.mm(self.y, self.head.t(), out=self.logits)
        else:
            norm.rms_norm(self.x, self.norm_weight, 1e-6, self.y, chained=self.chained)
            self.linear(self.y, self.head, self.logits)

    def run(self, way: Way) -> None:
        self.begin()
        for i in range(self.shape.layers):
            for part in self.parts(way, i).values():
                part()
        self.end(way)

    def breakdown(self, way: Way) -> str:
        parts = [self.parts(way, i) for i in range(self.shape.layers)]
        times = {name: graph_time_us([part[name] for part in parts]) for name in parts[0]}
        times["lm_head"] = graph_time_us([lambda: self.end(way)] * 3)
        times["plan+embed"] = graph_time_us([self.begin] * 10)
        return "  ".join(f"{name} {us:.1f}" for name, us in times.items())


def main() -> None:
    print_machine()
    for name in sys.argv[1:] or ["0.6B"]:
        for batch, context in ((1, 512), (1, 1024), (4, 1024), (16, 768), (32, 768), (64, 768), (128, 768), (256, 768)):
            most_fused = 4 if name == "0.6B" else 2
            most_mixed = 16 if torch.cuda.get_device_capability()[0] == 9 else 256
            ours: Way = "fused" if batch <= most_fused else "mixed" if batch <= most_mixed else "tiled"
            for way in (ours, "library"):
                for chained in (True, False):
                    torch.cuda.empty_cache()
                    step = Step(SHAPES[name], batch, context, chained)
                    us = graph_time_us([lambda step=step, way=way: step.run(way)])
                    label = f"{name} B={batch} ctx={context} {way}{' chained' if chained else ''}"
                    print(f"{label:>42}: {us / 1e3:7.3f} ms/step", flush=True)
                    if chained:
                        print(f"{'':>44}alone, us: {step.breakdown(way)}", flush=True)
                    del step


if __name__ == "__main__":
    main()
