"""Decode attention in CUDA C++ beside the kernels in Gluon: ragged batches, and prefixes that sequences share.

    python -m benchmarks.kernels.gpu_shared_attention

Bytes a second count every key and value that a sequence sees once for each sequence, but for the column "read".
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from benchmarks.kernels.gpu_attention import BF16, CUDA, Case, decode_us, make_case
from octavo.kernels.cuda.driver import find_gpu
from octavo.kernels.cuda.timing import copies_past_cache, graph_time_us, print_machine
from octavo.kernels.cuda.weights import DeviceWeights
from octavo.kernels.cuda_cpp.attention_plan import SharedPlan
from octavo.kernels.cuda_cpp.decode_attention import DecodeAttention, Kind, Partials
from octavo.kernels.cuda_cpp.shape import Shape
from octavo.kernels.triton.attention.hopper_decode import HopperDecode
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform

GPU = find_gpu(0)
#: sequences, tokens of each
PLAIN = ((1, 1024), (1, 16384), (8, 1024), (8, 8192), (32, 2048), (64, 1024), (256, 512), (256, 1024))
#: query heads of a kv head, sequences of a group, groups, tokens in common, tokens of each
SHARED = (
    (4, 32, 8, 4096, 256), (2, 32, 8, 4096, 256), (4, 4, 16, 256, 64), (4, 16, 4, 2048, 128), (4, 2, 32, 1024, 128),
    (4, 256, 1, 512, 300), (2, 64, 1, 128, 500), (4, 8, 32, 1024, 256),
)  # fmt: skip


def shared_us(
    lens: list[int],
    heads: int,
    kv_heads: int = 8,
    dim: int = 128,
    *,
    shares: bool = False,
    prefix: int = 0,
    rows: int = 0,
    with_plan: bool = False,
) -> float:
    """rows sequences in a group have their first `prefix` tokens in common."""
    assert GPU is not None
    copies = copies_past_cache(sum(lens) * kv_heads * dim * 4)
    case: Case = make_case(lens, [1] * len(lens), heads, kv_heads, dim, copies)
    if prefix:
        for table in case.tables:
            for s in range(len(lens)):
                table[s, : prefix // 16] = table[s // rows * rows, : prefix // 16]
    layer, shape = case.layer, Shape.of(case.layer)
    num = len(lens)
    plan = SharedPlan(shape, num, shape.num_stretches(GPU, dim), GPU, CUDA, shares=shares)
    partials = Partials.allocate(plan.max_part_rows(), num, shape, dim, CUDA)
    transform = HeadTransform.of(layer, DeviceWeights(CUDA, BF16))
    kernel = DecodeAttention(Kind.of(layer, BF16, case.layout, is_fused=True), GPU)
    qkv = torch.randn(num, (heads + 2 * kv_heads) * dim, device=CUDA, dtype=BF16)
    out = torch.empty(num, heads * dim, device=CUDA, dtype=BF16)

    def make(table: torch.Tensor) -> None:
        plan.make(**case.step, block_table=table, block_size=16, window=None, chained=True)

    def call(table: torch.Tensor) -> None:
        kernel.run(qkv, out, layer, case.pool, plan, partials, block_table=table, transform=transform)

    if with_plan:
        return graph_time_us([lambda table=table: make(table) for table in case.tables])
    make(case.tables[0])
    return graph_time_us([lambda table=table: call(table) for table in case.tables])


def main() -> None:
    print_machine()
    hopper = HopperDecode(torch.cuda.get_device_properties(0).multi_processor_count)
    print("\nplain decode, 8 kv heads of 128: cuda us (TB/s) | hopper us (TB/s) | plan us", flush=True)
    rng = np.random.default_rng(1)
    cases: dict[str, tuple[Any, int]] = {}
    quick = sys.argv[1:] == ["quick"]
    for group in (4,) if quick else (1, 2, 4, 8):
        for batch, context in PLAIN:
            cases[f"G{group} {batch} x {context}"] = ([context] * batch, group)
    for group in () if quick else (2, 4):
        cases |= {
            f"G{group} 256 of 100..1800": (rng.integers(100, 1800, 256), group),
            f"G{group} 256 of 1..2048": (rng.integers(1, 2049, 256), group),
            f"G{group} 128k + 31 x 4k": ([32000] * 4 + [4096] * 31, group),
            f"G{group} 16 x 16k": ([16384] * 16, group),
        }
    for name, (values, group) in cases.items():
        lens = [int(n) for n in values]
        ours = shared_us(lens, 8 * group)
        other = decode_us(lens, 8 * group, hopper=hopper)
        plan = shared_us(lens, 8 * group, with_plan=True, shares=True)
        num = sum(lens) * 4096
        cells = " | ".join(f"{us:8.1f} ({num / us / 1e6:4.2f})" for us in (ours, other))
        print(f"{name:>22}: {cells} | {plan:5.1f}", flush=True)
    print("\nshared prefixes, 8 kv heads of 128, us: shared | private | hopper | plan | share of private", flush=True)
    for group, rows, groups, prefix, tail in SHARED:
        lens = [prefix + tail] * (rows * groups)
        how: Any = {"prefix": prefix, "rows": rows}
        ours = shared_us(lens, 8 * group, shares=True, **how)
        private = shared_us(lens, 8 * group, **how)
        other = decode_us(lens, 8 * group, hopper=hopper)
        plan = shared_us(lens, 8 * group, shares=True, with_plan=True, **how)
        read = groups * (prefix + rows * tail) * 4096
        print(
            f"G{group} {groups} x {rows} rows, {prefix} + {tail}: {ours:8.1f} ({read / ours / 1e6:4.2f} TB/s read) | "
            f"{private:8.1f} | {other:8.1f} | {plan:5.1f} | {ours / private:.3f}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
