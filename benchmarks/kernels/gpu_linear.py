"""Skinny products on a GPU: ours against torch's (cuBLAS), in graphs, with every weight cold in L2.

Of one row, also by the kernel in CUDA C++.

    python -m benchmarks.kernels.gpu_linear [--sweep | --codes]

--sweep times every tiling and prints the best, for the table in `octavo/kernels/triton/linear/skinny_linear.py`.
--codes times matrices of codes with scales by Triton's kernels: few rows, and making them dense, for many.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context

import torch

from benchmarks.kernels.gpu_experts import the_gpu
from octavo.kernels.cuda.plain_codes import PlainCodes
from octavo.kernels.cuda.timing import copies_past_cache, graph_time_us, measured_limits, print_machine
from octavo.kernels.cuda_cpp.dense_linear import dense_linear, takes
from octavo.kernels.scaled import ScaledFormat
from octavo.kernels.triton.coded.coded_linear import coded_linear, make_dense
from octavo.kernels.triton.coded.weight_stack import WeightStack
from octavo.kernels.triton.linear.skinny_linear import Tiling, choose_tiling, skinny_linear

#: name -> (in, out); gate_up counts both halves
SHAPES = {
    "0.6B qkv": (1024, 4096),
    "0.6B o": (2048, 1024),
    "0.6B gate_up": (1024, 6144),
    "0.6B down": (3072, 1024),
    "0.6B lm_head": (1024, 151936),
    "8B qkv": (4096, 6144),
    "8B o": (4096, 4096),
    "8B gate_up": (4096, 28672),
    "8B down": (14336, 4096),
    "8B lm_head": (4096, 128256),
    "20B qkv": (2880, 5120),
    "20B o": (4096, 2880),
}
CODES = {
    "fp8": ScaledFormat("F8_E4M3", (1, 0)),
    "int8": ScaledFormat("I8", (1, 0)),
    "int4 g128": ScaledFormat("U4", (1, 128)),
    "int4 g32 sorted": ScaledFormat("U4", (1, 32), is_sorted=True),
    "nf4": ScaledFormat("NF4", (1, 64)),
    "mxfp4": ScaledFormat("E2M1", (1, 32)),
}
ROWS = (1, 2, 4, 8, 16, 32, 64)
VECTOR = [Tiling(n, 0, w) for n, w in product((1, 2, 4, 8, 16), (2, 4, 8))]
MATRIX = [
    Tiling(n, k, w, s)
    for n, k, w, s in (
        (8, 256, 4, 4), (8, 512, 4, 3), (16, 128, 4, 6), (16, 256, 4, 4), (16, 512, 4, 3), (32, 128, 4, 5),
        (32, 256, 4, 4), (64, 64, 4, 6), (64, 128, 4, 4), (64, 256, 8, 3), (128, 64, 8, 4),
    )
]  # fmt: skip

Case = tuple[str, int, Tiling]


def operands(name: str, rows: int) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    depth, columns = SHAPES[name]
    x = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
    copies = copies_past_cache(depth * columns * 2, most=48)
    weights = [torch.randn(columns, depth, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    return x, weights, torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16)


def compile_case(case: Case) -> None:
    name, rows, tiling = case
    depth, columns = SHAPES[name]
    x = torch.zeros(rows, depth, device="cuda", dtype=torch.bfloat16)
    weight = torch.zeros(columns, depth, device="cuda", dtype=torch.bfloat16)
    skinny_linear(
        x, weight, torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16), tiling=tiling, chained=True
    )
    torch.cuda.synchronize()


def candidates(rows: int, sweep: bool, columns: int, depth: int) -> list[Tiling]:
    if not sweep:
        chosen = choose_tiling(rows, columns, depth)
        return [chosen] if chosen else []
    fits = [t for t in VECTOR if 2048 <= t.columns * depth <= 40000 and t.columns * depth // t.num_warps >= 1024]
    fill = [t for t in MATRIX if columns // t.columns >= 60 and (columns < 20000 or t.columns >= 16)]
    return (fits if rows <= 4 else []) + (fill if rows > 1 else [])


def measure(name: str, rows: int, tilings: list[Tiling]) -> str:
    x, weights, out = operands(name, rows)
    theirs = graph_time_us([lambda w=w: torch.mm(x, w.t(), out=out) for w in weights])
    times = {}
    for tiling in tilings:
        try:
            times[tiling] = graph_time_us(
                [lambda w=w, t=tiling: skinny_linear(x, w, out, tiling=t, chained=True) for w in weights]
            )
        except Exception as error:  # a tiling that does not fit the chip is not a candidate
            print(name, rows, tiling, str(error)[:80])
    if not times:
        return f"{name:>13} {rows:>3}: {theirs:7.2f} | left to torch"
    best = min(times, key=times.__getitem__)
    rate = weights[0].nbytes / times[best] / 1e6
    order = sorted((us, (t.columns, t.depth, t.num_warps, t.num_stages)) for t, us in times.items())
    rest = "  ".join(f"{us:.1f}{list(t)}" for us, t in order[:4]) if len(order) > 1 else ""
    ours = f"{times[best]:7.2f} us {rate:5.2f} TB/s  x{theirs / times[best]:4.2f}"
    if rows == 1 and takes(weights[0], the_gpu()):
        us = graph_time_us([partial(dense_linear, x, w, out, gpu=the_gpu()) for w in weights])
        ours += f"  CUDA C++ {us:7.2f} us {weights[0].nbytes / us / 1e6:5.2f} TB/s"
    return f"{name:>13} {rows:>3}: {theirs:7.2f} | {ours}  {rest}"


def measure_codes(name: str) -> None:
    """Microseconds and the share of the card's copy bandwidth, by rows; and to make the matrix dense."""
    depth, columns = SHAPES[name]
    for scheme, form in CODES.items():
        if depth % (form.block[1] or 1):
            continue
        dense = torch.randn(columns, depth, device="cuda", dtype=torch.bfloat16) * depth**-0.5
        one = WeightStack.coded([PlainCodes.quantise(dense, form)], [(columns, depth)], form, dense.device)
        again = range(copies_past_cache(one.num_bytes, most=48) - 1)
        weights = [one, *(replace(one, data=one.data.clone()) for _ in again)]
        texts = []
        for rows in ROWS:
            x, out = (torch.randn(rows, size, device="cuda", dtype=torch.bfloat16) for size in (depth, columns))
            us = graph_time_us([partial(coded_linear, x, w, out, chained=True) for w in weights])
            texts.append(f"{us:7.1f} ({one.num_bytes / us * 1e6 / measured_limits()[0]:4.0%})")
        us = graph_time_us([partial(make_dense, w, dense, chained=True) for w in weights])
        print(f"{name:>13} {scheme:<15} {one.num_bytes / 1e6:6.1f} MB {' '.join(texts)} | {us:7.1f}", flush=True)


def main() -> None:
    if "--codes" in sys.argv:
        print_machine()
        print(f"us and share of the copy bandwidth for {', '.join(map(str, ROWS))} rows | us to make it dense")
        for name in (name for name in SHAPES if "lm_head" not in name):
            measure_codes(name)
        return
    sweep = "--sweep" in sys.argv
    work = {
        (name, rows): candidates(rows, sweep, columns, depth)
        for (name, (depth, columns)), rows in product(SHAPES.items(), ROWS)
    }
    cases = [(name, rows, tiling) for (name, rows), tilings in work.items() for tiling in tilings]
    distinct = {(c[0], c[1] if c[2].depth == 0 else max(16, c[1]), SHAPES[c[0]][0], c[2]): c for c in cases}
    with get_context("spawn").Pool(14) as pool:
        pool.map(compile_quietly, list(distinct.values()), chunksize=4)
    print_machine()
    print("\nskinny products, us: torch | ours")
    for (name, rows), tilings in work.items():
        print(measure(name, rows, tilings), flush=True)


def compile_quietly(case: Case) -> None:
    try:
        compile_case(case)
    except Exception as error:  # measured again, and reported, by `measure`
        print(case, str(error)[:80])


if __name__ == "__main__":
    main()
