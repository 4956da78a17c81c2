"""Products with packed matrices: those of one model step, for each dtype, number of tokens and instruction set.

    python -m benchmarks.kernels.matmul [--isa native avx2] [--dtype Q4_1 F32] [--tokens 1 8 16 64 512] [--threads 2]

The shapes are SmolLM2-135M's: 30 layers, hidden 576, feed-forward 1536, 3 key and value heads of 9, vocabulary 49152,
whose quantised files keep the embedding in Q8_0. Each layer has its own weights, so that a step reads them from
memory as a model does. The fastest round of every product counts: on a shared machine, the others measure other
programs. As in a prefill, the sum has logits only for the last token of each sequence.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from octavo.kernels.build import build
from octavo.kernels.tensor import BLOCK_FORMATS, DENSE_DTYPES, DTYPES, FILE_DTYPES, DType, HostTensor, num_bytes
from tests.kernels.packed_matrix import KernelThreads, PackedMatrix

NUM_LAYERS = 30
LINEARS = {"qkv": (960, 576), "o": (576, 576), "gate_up": (3072, 576), "down": (576, 1536)}
VOCABULARY, HIDDEN = 49152, 576
MAX_LOGITS_ROWS = 64
HALVES = {dtype: (208,) if dtype == "Q6_K" else (0, 2) for dtype in FILE_DTYPES}


@dataclass
class Product:
    """All products of one name in a step."""

    name: str
    matrices: list[PackedMatrix]
    rounds: list[list[float]] = field(default_factory=list)

    @property
    def packed_bytes(self) -> int:
        return sum(matrix.packed_bytes for matrix in self.matrices)

    @property
    def operations_a_token(self) -> int:
        return sum(2 * matrix.rows * matrix.cols for matrix in self.matrices)

    @property
    def seconds(self) -> float:
        return sum(map(min, zip(*self.rounds, strict=True)))

    def measure(self, threads: KernelThreads, num_tokens: int) -> None:
        first = self.matrices[0]
        x = np.random.default_rng(0).standard_normal((num_tokens, first.cols), np.float32)
        y = np.empty((num_tokens, first.rows), np.float32)
        scratch = first.scratch(num_tokens)
        times = [time.perf_counter()]
        with threads.session():
            for matrix in self.matrices:
                matrix.multiply(threads, x, y, scratch)
                times.append(time.perf_counter())
        self.rounds.append([end - start for start, end in pairwise(times)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", nargs="+", default=["native", "avx2"])
    parser.add_argument("--dtype", nargs="+", default=["Q4_1", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "F32"], choices=DTYPES)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8, 16, 64, 512])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    sums = []
    for isa in args.isa:
        os.environ["OCTAVO_CPU_ISA"] = isa
        threads = KernelThreads(build.load(), args.threads)
        for dtype in args.dtype:
            products = make_step(threads, dtype)
            for num_tokens in args.tokens:
                step = [p for p in products if p.name != "lm_head" or num_tokens <= MAX_LOGITS_ROWS]
                measure_step(threads, step, num_tokens, args.rounds)
                print_table(f"{isa}, {dtype}, {num_tokens} tokens", step, num_tokens)
                sums.append((isa, dtype, num_tokens, sum(p.seconds for p in step)))
            del products, step
        threads.close()
    print("\nproducts of a whole step")
    for isa, dtype, num_tokens, seconds in sums:
        print(f"{isa:8}{dtype:6}{num_tokens:5} tokens {seconds * 1e3:9.2f} ms {num_tokens / seconds:8.0f} tokens/s")


def make_step(threads: KernelThreads, dtype: DType) -> list[Product]:
    products = [
        Product(name, [pack_random(threads, dtype, rows, cols, seed) for seed in range(NUM_LAYERS)])
        for name, (rows, cols) in LINEARS.items()
    ]
    head_dtype: DType = dtype if dtype in DENSE_DTYPES else "Q8_0"
    return [*products, Product("lm_head", [pack_random(threads, head_dtype, VOCABULARY, HIDDEN, 0)])]


def pack_random(threads: KernelThreads, dtype: DType, rows: int, cols: int, seed: int) -> PackedMatrix:
    """Random bytes, scales small. Columns are cut to whole blocks: the K formats cannot hold 576."""
    block_len, block_bytes = BLOCK_FORMATS[dtype]
    cols = cols // block_len * block_len
    rng = np.random.default_rng(seed)
    if dtype in DENSE_DTYPES:
        data = np.full(num_bytes(dtype, (rows, cols)), 0x3C, np.uint8)  # a small number in each of the three
    else:
        data = rng.integers(0, 256, num_bytes(dtype, (rows, cols)), np.uint8)
        if dtype not in HALVES:
            data.reshape(-1, block_bytes)[:, :4] = np.array([0.01], np.float32).view(np.uint8)
        for at in HALVES.get(dtype, ()):
            data.reshape(-1, block_bytes)[:, at : at + 2] = np.array([0.01], np.float16).view(np.uint8)
    return PackedMatrix(threads, HostTensor(dtype, (rows, cols), data))


def measure_step(threads: KernelThreads, step: list[Product], num_tokens: int, rounds: int) -> None:
    for product in step:
        product.rounds.clear()
    for _ in range(rounds):
        for product in step:
            product.measure(threads, num_tokens)


def print_table(title: str, step: list[Product], num_tokens: int) -> None:
    print(f"\n{title}\n{'product':10}{'us each':>10}{'GB/s':>8}{'GOP/s':>8}{'ms a step':>11}")
    for p in step:
        seconds = p.seconds
        rates = f"{p.packed_bytes / seconds / 1e9:8.1f}{p.operations_a_token * num_tokens / seconds / 1e9:8.0f}"
        print(f"{p.name:10}{seconds / len(p.matrices) * 1e6:10.0f}{rates}{seconds * 1e3:11.2f}", flush=True)


if __name__ == "__main__":
    main()
