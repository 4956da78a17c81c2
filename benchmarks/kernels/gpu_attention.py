"""Paged attention on a GPU: decode as memory bandwidth, prefill as TFLOP/s, beside torch's own attention.

    python -m benchmarks.kernels.gpu_attention [decode] [prefill]

Decode: 8 kv heads, head dimension 128, bf16, block size 16, norm + rotary + cache write fused in. Bandwidth counts
the keys and values read, 4 KiB per token; block tables are shuffled and rotate so that no call finds its keys cached.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from octavo.kernels.attention_layer import AttentionLayer, RotaryTable
from octavo.kernels.cuda.timing import copies_past_cache, graph_time_us, print_machine
from octavo.kernels.cuda.weights import DeviceWeights
from octavo.kernels.kv_layout import KVGroup, KVLayout
from octavo.kernels.triton.attention.decode_attention import decode_attention
from octavo.kernels.triton.attention.hopper_decode import HopperDecode
from octavo.kernels.triton.attention.hopper_prefill import HopperPrefill
from octavo.kernels.triton.attention.join import join_parts
from octavo.kernels.triton.attention.memory import DecodeWorkspace, LayerPool
from octavo.kernels.triton.attention.plan import AttentionPlan, make_plan
from octavo.kernels.triton.attention.prefill_attention import prefill_attention
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform
from octavo.testing.made_parameters import parameter

CUDA = torch.device("cuda")
BF16 = torch.bfloat16
BLOCK = 16
MAX_LEN = 1 << 15


@dataclass
class Case:
    """Sequences of one step, several block tables over one pool, and everything a launch needs."""

    layer: AttentionLayer
    layout: KVLayout
    pool: LayerPool
    tables: list[torch.Tensor]
    step: dict[str, torch.Tensor]
    positions: torch.Tensor
    plan: AttentionPlan


def make_case(lens: list[int], query_lens: list[int], num_heads: int, kv_heads: int, dim: int, copies: int) -> Case:
    blocks = [-(-n // BLOCK) for n in lens]
    layout = KVLayout(1 + copies * sum(blocks), BLOCK, (KVGroup(1, kv_heads, dim),), "bfloat16")
    layer = make_layer(num_heads, kv_heads, dim)
    ids = np.random.default_rng(0).permutation(layout.num_blocks - 1).astype(np.int32) + 1
    tables = []
    for copy in ids.reshape(copies, -1):
        table = np.zeros((len(lens), max(blocks)), np.int32)
        for s, (start, n) in enumerate(zip(np.cumsum([0, *blocks]), blocks, strict=False)):
            table[s, :n] = copy[start : start + n]
        tables.append(torch.as_tensor(table, device=CUDA))

    def on_device(values: object) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, np.int32), device=CUDA)

    step = {
        "query_start_loc": on_device(np.cumsum([0, *query_lens])),
        "seq_lens": on_device(lens),
        "rows": on_device(range(len(lens))),
    }
    positions = on_device(np.concatenate([np.arange(n - q, n) for n, q in zip(lens, query_lens, strict=True)]))
    plan = AttentionPlan.allocate(len(lens), sum(query_lens), CUDA)
    make_plan(plan, positions=positions, block_table=tables[0], block_size=BLOCK, **step)
    return Case(layer, layout, make_pool(layout, layer), tables, step, positions, plan)


def make_pool(layout: KVLayout, layer: AttentionLayer) -> LayerPool:
    raw = torch.randn(layout.num_blocks * layout.block_bytes // 2, device=CUDA, dtype=BF16)
    return LayerPool.of(raw.view(torch.uint8), layout, layer)


def make_layer(num_heads: int, kv_heads: int, dim: int) -> AttentionLayer:
    angle = np.outer(np.arange(MAX_LEN), 1e6 ** -(np.arange(dim // 2) / (dim // 2)))
    table = RotaryTable(np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
    ones = parameter(np.ones(dim, np.float32))
    return AttentionLayer(
        group=0, index_in_group=0, num_heads=num_heads, num_kv_heads=kv_heads, head_dim=dim, scale=dim**-0.5,
        q_norm=ones, k_norm=ones, rotary=table,
    )  # fmt: skip


def decode_us(
    lens: list[int], num_heads: int, kv_heads: int = 8, dim: int = 128, *, hopper: HopperDecode | None = None
) -> float:
    copies = copies_past_cache(sum(lens) * kv_heads * dim * 4)
    case = make_case(lens, [1] * len(lens), num_heads, kv_heads, dim, copies)
    qkv = torch.randn(len(lens), (num_heads + 2 * kv_heads) * dim, device=CUDA, dtype=BF16)
    out = torch.empty(len(lens), num_heads * dim, device=CUDA, dtype=BF16)
    workspace = DecodeWorkspace.allocate(len(lens), [case.layer], CUDA)
    transform = HeadTransform.of(case.layer, DeviceWeights(CUDA, BF16))

    def call(table: torch.Tensor) -> None:
        step, start = (qkv, out, case.layer, case.pool, case.plan, workspace), case.step["query_start_loc"]
        if hopper is not None:
            hopper.attend(*step, table, transform, chained=True)
            join_parts(out, case.layer, case.pool, case.plan, workspace, start, chained=True)
        else:
            decode_attention(
                *step, block_table=table, num_multiprocessors=132, transform=transform, chained=True,
                query_start_loc=start,
            )  # fmt: skip

    return graph_time_us([lambda table=table: call(table) for table in case.tables])


def prefill_us(
    lens: list[int], num_heads: int, kv_heads: int, dim: int, *, cached: int = 0, hopper: HopperPrefill | None = None
) -> float:
    case = make_case([cached + n for n in lens], lens, num_heads, kv_heads, dim, 1)
    q = torch.randn(sum(lens), num_heads * dim, device=CUDA, dtype=BF16)
    out = torch.empty_like(q)
    where = (q, out, case.layer, case.pool, case.plan)
    if hopper is not None:
        return graph_time_us([lambda: hopper.prefill(*where, block_table=case.tables[0])])
    return graph_time_us([
        lambda: prefill_attention(*where, max_tiles=len(case.plan.tiles), block_table=case.tables[0])
    ])  # fmt: skip


def torch_us(batch: int, queries: int, length: int, num_heads: int, kv_heads: int, dim: int, how: SDPBackend) -> float:
    """torch's attention over dense keys and values, without paging, norm, rotary and cache write."""
    copies = copies_past_cache(batch * length * kv_heads * dim * 4) if queries == 1 else 1
    q = torch.randn(batch, num_heads, queries, dim, device=CUDA, dtype=BF16)
    kv = torch.randn(copies, 2, batch, kv_heads, length, dim, device=CUDA, dtype=BF16)

    def call(i: int) -> None:
        F.scaled_dot_product_attention(q, kv[i, 0], kv[i, 1], is_causal=queries > 1, enable_gqa=num_heads != kv_heads)

    with sdpa_kernel(how):
        return graph_time_us([lambda i=i: call(i) for i in range(copies)])


def attempt(measure: object, *args: object) -> float:
    try:
        return measure(*args)  # type: ignore[operator]
    except RuntimeError:
        return float("nan")


def decode_table() -> None:
    contexts = (128, 512, 1024, 4096, 16384)
    hopper = HopperDecode(torch.cuda.get_device_properties(0).multi_processor_count)
    print("\ndecode by hopper_decode, us (TB/s of keys and values)")
    print(f"{'group':>5} {'batch':>5} " + "".join(f"{c:>16}" for c in contexts))
    for group, batch in product((1, 2, 4, 8), (1, 8, 32, 64, 256)):
        cells = []
        for context in contexts:
            if batch * context > 1 << 20:
                break
            us = decode_us([context] * batch, 8 * group, hopper=hopper)
            cells.append(f"{us:>8.1f} ({batch * context * 4096 / us / 1e6:4.2f})")
        print(f"{group:>5} {batch:>5} " + "".join(f"{c:>16}" for c in cells), flush=True)

    print("\ndecode, group 2, us (TB/s): hopper_decode | decode_attention")
    rng = np.random.default_rng(1)
    ragged: dict[str, Any] = {
        "145 of 100..1800": rng.integers(100, 1800, 145),
        **{f"{batch} of {context}": [context] * batch for batch, context in ((1, 1024), (8, 1024), (32, 4096))},
        "32 of 1..2048": rng.integers(1, 2049, 32),
        "256 of 1..2048": rng.integers(1, 2049, 256),
        "256 log-normal, median 400": np.minimum(rng.lognormal(6, 1, 256), 16000) + 1,
        "1 of 16384 and 31 of 1024": [16384] + [1024] * 31,
        "1 of 16384 and 255 of 128": [16384] + [128] * 255,
    }
    for name, values in ragged.items():
        lens = [int(n) for n in values]
        times = [decode_us(lens, 16, hopper=one) for one in (hopper, None)]
        cells = " | ".join(f"{us:8.1f} ({sum(lens) * 4096 / us / 1e6:4.2f})" for us in times)
        print(f"{name:>28}: {cells}", flush=True)

    print("\ntorch attention over dense keys, one query, group 2, us (TB/s): flash | cudnn")
    for batch, context in ((1, 1024), (1, 16384), (32, 1024), (256, 1024)):
        row = [
            attempt(torch_us, batch, 1, context, 16, 8, 128, how)
            for how in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
        ]
        cells = " | ".join(f"{us:8.1f} ({batch * context * 4096 / us / 1e6:4.2f})" for us in row)
        print(f"{batch:>5} x {context:>5}: {cells}", flush=True)


def prefill_table() -> None:
    hopper = HopperPrefill(torch.cuda.get_device_properties(0).multi_processor_count, CUDA)
    print("\nprefill, us and TFLOP/s: hopper_prefill | prefill_attention | torch flash | torch cudnn (one sequence)")
    for num_heads, kv_heads, dim in ((16, 8, 128), (32, 8, 128), (32, 8, 64)):
        for number, length, cached in (
            (1, 512, 0), (1, 2048, 0), (1, 8192, 0), (1, 16384, 0), (2, 8192, 0), (8, 2048, 0), (28, 550, 0),
            (50, 160, 0), (50, 20, 0), (1, 512, 15872),
        ):  # fmt: skip
            flop = 4 * number * length * (cached + length / 2) * dim * num_heads
            times = [
                prefill_us([length] * number, num_heads, kv_heads, dim, cached=cached, hopper=one)
                for one in (hopper, None)
            ]
            if number == 1 and not cached:
                times += [
                    attempt(torch_us, 1, length, length, num_heads, kv_heads, dim, how)
                    for how in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
                ]
            cells = " | ".join(f"{us:9.1f} {flop / us / 1e6:5.0f}" for us in times)
            name = f"{number} x {length}" + f" after {cached}" * (cached > 0)
            print(f"{num_heads:>3}/{kv_heads} heads of {dim:>3}, {name:>16}: {cells}", flush=True)


if __name__ == "__main__":
    print_machine()
    wanted = sys.argv[1:] or ["decode", "prefill"]
    if "decode" in wanted:
        decode_table()
    if "prefill" in wanted:
        prefill_table()
