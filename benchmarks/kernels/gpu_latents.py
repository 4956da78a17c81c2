"""Attention over latents on a GPU: decode steps of DeepSeek's shapes, by the type of KV blocks, and deterministic.

    python -m benchmarks.kernels.gpu_latents [heads ...]

A latent of 512 numbers and a key of 64 a token, one layer, computing in bfloat16. Bandwidth counts what a token's block
holds, read once for 64 heads or fewer. Block tables are shuffled and rotate, so that no call finds its latents cached.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import torch

from octavo.kernels.attention import AttentionBackend, _unreachable
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.driver import find_gpu
from octavo.kernels.cuda.step import DECODES, DeviceStep
from octavo.kernels.cuda.timing import copies_past_cache, graph_time_us, print_machine
from octavo.kernels.device import StepLimits
from octavo.kernels.kv_layout import KVDType, KVGroup, KVLayout
from octavo.kernels.latent import Latent
from octavo.kernels.triton.attention.latent_attention import LatentAttention
from octavo.kernels.triton.attention.memory import AttentionMemory
from octavo.kernels.triton.attention.triton_attention import FixedAttention
from octavo.testing.made_parameters import parameter

CUDA = torch.device("cuda")
RANK, ROTARY, BLOCK = 512, 64, 16
SHAPES = [(1, 1024), (1, 4096), (8, 4096), (32, 4096), (64, 2048), (128, 1024), (8, 16384), (2, 65536)]
KINDS: list[tuple[str, KVDType, type[AttentionBackend]]] = [
    ("bfloat16", "bfloat16", LatentAttention),
    ("fp8", "fp8", LatentAttention),
    ("int8", "int8", LatentAttention),
    ("bfloat16, deterministic", "bfloat16", FixedAttention),
    ("fp8, deterministic", "fp8", FixedAttention),
]


def decode_us(batch: int, context: int, heads: int, dtype: KVDType, backend: type[AttentionBackend]) -> float:
    latent = Latent(RANK, 128, 128, parameter(np.zeros((1, RANK), np.float32)))
    layer = AttentionLayer(0, 0, heads, 1, RANK + ROTARY, 192**-0.5, latent=latent)
    layout = KVLayout(0, BLOCK, (KVGroup(1, 1, RANK + ROTARY, is_latent=True),), dtype)
    blocks = batch * context // BLOCK
    copies = copies_past_cache(blocks * layout.block_bytes)
    gpu = find_gpu(0)
    assert gpu is not None, "these kernels are measured on a GPU"
    memory = AttentionMemory([layer], layout, StepLimits(batch, batch, context, 1), gpu, CUDA, "bfloat16")
    size = (1 + copies * blocks) * layout.block_bytes
    memory.bind(torch.randint(0, 0x3F, (size,), dtype=torch.uint8, device=CUDA))
    ids = torch.randperm(copies * blocks, device=CUDA).to(torch.int32).view(copies, batch, -1) + 1
    lens = torch.full((batch,), context, dtype=torch.int32, device=CUDA)
    starts = torch.arange(batch + 1, dtype=torch.int32, device=CUDA)
    steps = [DeviceStep(lens, lens - 1, starts, lens, starts[:-1], (table,), DECODES) for table in ids]
    q = torch.randn(batch, heads * (RANK + ROTARY), device=CUDA, dtype=torch.bfloat16)
    out = torch.empty(batch, heads * RANK, device=CUDA, dtype=torch.bfloat16)
    launch = backend(memory).prefill(layer, _unreachable)
    return graph_time_us([partial(launch, step, q, out) for step in steps])


def main() -> None:
    print_machine()
    for heads in [int(each) for each in sys.argv[1:]] or [16, 128]:
        print(f"\n| {heads} heads, us (GB/s) | {' | '.join(f'{b} x {n}' for b, n in SHAPES)} |")
        print(f"|---|{'---|' * len(SHAPES)}")
        for name, dtype, backend in KINDS:
            cells = []
            for batch, context in SHAPES:
                us = decode_us(batch, context, heads, dtype, backend)
                num_bytes = batch * context * (RANK + ROTARY) * (2 if dtype == "bfloat16" else 1)
                cells.append(f"{us:.1f} ({num_bytes / us / 1e3:.0f})")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
