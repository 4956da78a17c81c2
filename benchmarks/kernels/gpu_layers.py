"""A whole decode step of a dense model with random weights, as one CUDA graph: ms a step and where they go.

    python -m benchmarks.kernels.gpu_layers [0.6B] [8B]

Two ways through a layer, the second for batches that outgrow the skinny products:

    fused    norm+qkv | rotary+write+attention | o+residual | norm+gate_up+silu | down+residual         5 kernels
    library  cuBLAS products, with add+norm, attention and gated activation between them                8 kernels
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.kernels.gpu_attention import CUDA, Case, make_case, make_pool
from benchmarks.kernels.gpu_timing import graph_time_us, print_machine
from octavo.kernels.triton import norm
from octavo.kernels.triton.decode_attention import DecodeWorkspace, decode_attention
from octavo.kernels.triton.elementwise import gated_activation
from octavo.kernels.triton.embedding import embedding
from octavo.kernels.triton.linear import MAX_VECTOR_ROWS, skinny_linear
from octavo.kernels.triton.plan import make_plan
from octavo.kernels.triton.rotary_kv_write import HeadTransform

BF16 = torch.bfloat16


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
        self.transform = HeadTransform.of(self.case.layer, CUDA)
        self.workspace = DecodeWorkspace.allocate(batch, shape.heads, shape.dim, CUDA)
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

    def normed_linear(self, weight: torch.Tensor, out: torch.Tensor, gate: str | None = None) -> None:
        if self.batch <= MAX_VECTOR_ROWS:
            skinny_linear(self.x, weight, out, gate=gate, norm_weight=self.norm_weight, chained=self.chained)
        else:
            norm.rms_norm(self.x, self.norm_weight, 1e-6, self.y, chained=self.chained)
            skinny_linear(self.y, weight, out, gate=gate, chained=self.chained)

    def fused_parts(self, i: int) -> dict[str, Callable[[], None]]:
        qkv, o, gate_up, down = self.weights[i]
        return {
            "qkv": lambda: self.normed_linear(qkv, self.qkv),
            "attention": lambda: self.attend(i),
            "o": lambda: skinny_linear(self.attended, o, self.x, residual=self.x, chained=self.chained),
            "gate_up": lambda: self.normed_linear(gate_up, self.gated, "silu"),
            "down": lambda: skinny_linear(self.gated, down, self.x, residual=self.x, chained=self.chained),
        }

    def library_parts(self, i: int) -> dict[str, Callable[[], None]]:
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

    def end(self, fused: bool) -> None:
        if fused:
            self.normed_linear(self.head, self.logits)
        else:
            norm.add_rms_norm(self.y, self.x, self.norm_weight, 1e-6, self.y, chained=self.chained)
            torch.mm(self.y, self.head.t(), out=self.logits)

    def run(self, fused: bool) -> None:
        self.begin()
        for i in range(self.shape.layers):
            for part in (self.fused_parts(i) if fused else self.library_parts(i)).values():
                part()
        self.end(fused)

    def breakdown(self, fused: bool) -> str:
        parts = [self.fused_parts(i) if fused else self.library_parts(i) for i in range(self.shape.layers)]
        times = {name: graph_time_us([part[name] for part in parts]) for name in parts[0]}
        times["lm_head"] = graph_time_us([lambda: self.end(fused)] * 3)
        times["plan+embed"] = graph_time_us([self.begin] * 10)
        return "  ".join(f"{name} {us:.1f}" for name, us in times.items())


def main() -> None:
    print_machine()
    for name in sys.argv[1:] or ["0.6B"]:
        for batch, context in ((1, 512), (1, 1024), (16, 768), (64, 768), (256, 768)):
            for fused in (True, False):
                if fused and batch > 64:
                    continue
                for chained in (True, False):
                    torch.cuda.empty_cache()
                    step = Step(SHAPES[name], batch, context, chained)
                    us = graph_time_us([lambda step=step, fused=fused: step.run(fused)])
                    label = f"{name} B={batch} ctx={context} {'fused' if fused else 'library'}{' chained' if chained else ''}"
                    print(f"{label:>42}: {us / 1e3:7.3f} ms/step", flush=True)
                    if chained:
                        print(f"{'':>44}alone, us: {step.breakdown(fused)}", flush=True)
                    del step


if __name__ == "__main__":
    main()
