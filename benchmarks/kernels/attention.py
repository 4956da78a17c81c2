"""Paged attention on the cpu backend: GFLOP/s of prefill, GB/s of decode.

    PYTHONPATH=. python benchmarks/kernels/attention.py [--threads N] [--heads 9 3 64] [--kv-dtype float32]

With --threads 1, CPU time is measured instead of wall time: steadier on a shared machine.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.device import StepBatch, StepLimits
from octavo.kernels.kv_layout import KVDType, KVGroup, KVLayout
from octavo.kernels.model import TOKEN_IDS, Head
from octavo.kernels.ops import Ops, Tensor
from octavo.observe.machine import num_cores
from octavo.testing.made_parameters import linear, parameter

LAYERS = 8
BLOCK_SIZE = 16
#: what is in the step: (sequences, tokens each has in the cache already, new tokens each)
STEPS = {
    "prefill 512": (1, 0, 512),
    "prefill 16 x 128": (16, 0, 128),
    "chunk 256 after 3840": (1, 3840, 256),
    "decode 1 x 250": (1, 250, 1),
    "decode 16 x 250": (16, 250, 1),
    "decode 64 x 250": (64, 250, 1),
    "decode 1 x 8000": (1, 8000, 1),
}


@dataclass(frozen=True)
class AttentionOnly:
    """A model of attention layers only: queries, keys and values are looked up, not computed."""

    num_heads: int
    kv_heads: int
    head_dim: int
    inputs = TOKEN_IDS

    @property
    def heads(self) -> dict[str, Head]:
        return {"logits": self.logits}

    def body(self, ops: Ops) -> tuple[Tensor]:
        width = (self.num_heads + 2 * self.kv_heads) * self.head_dim
        table = parameter(np.random.default_rng(0).standard_normal((64, width), np.float32))
        for index in range(LAYERS):
            layer = AttentionLayer(0, index, self.num_heads, self.kv_heads, self.head_dim, self.head_dim**-0.5)
            out = ops.paged_attention(ops.rotary_kv_write(ops.embedding(table, "input_ids"), layer), layer)
        return (out,)

    def logits(self, ops: Ops, hidden: Tensor) -> Tensor:
        return ops.linear(hidden, linear(np.zeros((32, hidden.width), np.float32)))


def make_batch(num_seqs: int, computed: int, new: int, num_blocks: int) -> StepBatch:
    rng = np.random.default_rng(1)
    table_len = -(-(computed + new) // BLOCK_SIZE)
    tables = rng.permutation(np.arange(1, num_blocks, dtype=np.int32))[: num_seqs * table_len]
    return StepBatch(
        input_ids=rng.integers(0, 64, num_seqs * new, np.int32),
        positions=np.tile(np.arange(computed, computed + new, dtype=np.int32), num_seqs),
        query_start_loc=np.arange(num_seqs + 1, dtype=np.int32) * np.int32(new),
        seq_lens=np.full(num_seqs, computed + new, np.int32),
        rows=np.arange(num_seqs, dtype=np.int32),
        block_tables=(tables.reshape(num_seqs, table_len),),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--heads", type=int, nargs=3, default=(9, 3, 64), metavar=("Q", "KV", "DIM"))
    parser.add_argument("--kv-dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    for name, step in STEPS.items():
        measure(name, step, arguments.heads, arguments.kv_dtype, arguments.threads, arguments.repeat)


def measure(
    name: str, step: tuple[int, int, int], shape: tuple[int, int, int], kv_dtype: KVDType, threads: int, repeat: int
) -> None:
    heads, kv_heads, head_dim = shape
    num_seqs, computed, new = step
    num_blocks = 1 + num_seqs * -(-(computed + new) // BLOCK_SIZE)
    kv = KVLayout(0, BLOCK_SIZE, (KVGroup(LAYERS, kv_heads, head_dim),), kv_dtype)
    limits = StepLimits(num_seqs * new, num_seqs, computed + new, 32)
    model = CpuDevice(threads).load(AttentionOnly(heads, kv_heads, head_dim), kv, limits, "float32").bind(num_blocks)
    model.pool.fill(0)
    batch = make_batch(num_seqs, computed, new, num_blocks)
    calls = max(1, 200 // (LAYERS * (1 + num_seqs * new // 64)))
    seconds = []
    for _ in range(repeat):
        model.measure(True)
        before = time.process_time()
        for _ in range(calls):
            model.forward(batch)
        processor = time.process_time() - before
        times = {entry.op: entry.seconds for entry in model.op_times()}
        share = times["paged_attention"] / sum(times.values())
        total = processor * share if threads == 1 else times["paged_attention"]
        seconds.append(total / (calls * LAYERS))
    best, median = min(seconds), float(np.median(seconds))
    pairs = num_seqs * sum(computed + i + 1 for i in range(new))
    flops = 4 * heads * head_dim * pairs
    bytes_read = num_seqs * (computed + new) * kv.layer_bytes(kv.groups[0]) / BLOCK_SIZE
    print(
        f"{name:22} {median * 1e6:9.1f} us a layer (best {best * 1e6:9.1f})   "
        f"{flops / best / 1e9:6.1f} GFLOP/s   {bytes_read / best / 1e9:6.1f} GB/s"
    )


if __name__ == "__main__":
    main()
