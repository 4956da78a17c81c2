"""Where a step's time goes: a SmolLM2-shaped model of random weights, by kind of op.

    PYTHONPATH=. python benchmarks/kernels/program.py [--threads N] [--dtype Q4_1] [--kv-dtype float16]

Each line is one kind of step: tokens per second, milliseconds per step, and each op's share of it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

import numpy as np

from octavo.kernels.attention_layer import AttentionLayer, RotaryTable
from octavo.kernels.cpu.compiled import CpuModel
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.device import StepBatch, StepLimits
from octavo.kernels.kv_layout import KVGroup, KVLayout
from octavo.kernels.model import TOKEN_IDS, Head
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear, Parameter
from octavo.kernels.tensor import DType, HostTensor, from_array, num_bytes
from octavo.observe.machine import num_cores
from octavo.testing.made_parameters import linear, parameter

LAYERS, HIDDEN, FF, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 30, 576, 1536, 9, 3, 64, 49152
BLOCK_SIZE, MAX_LEN = 16, 2048
#: what is in the step: (sequences, tokens each has in the cache already, new tokens each)
STEPS = {
    "prefill 512": (1, 0, 512),
    "prefill 128": (1, 0, 128),
    "decode 1 x 64": (1, 64, 1),
    "decode 1 x 1500": (1, 1500, 1),
    "decode 16 x 200": (16, 200, 1),
    "decode 64 x 250": (64, 250, 1),
}
HALF_SCALES = {"Q4_0": 1, "Q4_1": 2, "Q8_0": 1}  # fp16 numbers at the start of each block of 32


def random_weight(rng: np.random.Generator, dtype: DType, rows: int, cols: int) -> HostTensor:
    if dtype == "F32":
        return from_array(rng.standard_normal((rows, cols), np.float32) * np.float32(cols**-0.5))
    num_scales, block_bytes = HALF_SCALES[dtype], num_bytes(dtype, (32,))
    blocks = rng.integers(0, 256, (rows * cols // 32, block_bytes), np.uint8)
    scales = rng.standard_normal((len(blocks), num_scales)) * cols**-0.5 / (4 if dtype != "Q8_0" else 64)
    blocks[:, : 2 * num_scales] = scales.astype(np.float16).view(np.uint8)
    return HostTensor(dtype, (rows, cols), blocks.reshape(-1))


def random_norm(rng: np.random.Generator) -> Parameter:
    return parameter(1 + np.float32(0.1) * rng.standard_normal(HIDDEN, np.float32))


@dataclass
class Decoder:
    """A Llama of random weights."""

    dtype: DType
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    inputs = TOKEN_IDS

    @property
    def heads(self) -> dict[str, Head]:
        return {"logits": self.logits}

    def body(self, ops: Ops) -> tuple[Tensor]:
        angles = np.outer(np.arange(MAX_LEN), 1e5 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))).astype(np.float32)
        rotary = RotaryTable(np.cos(angles), np.sin(angles))
        residual = ops.embedding(parameter(random_weight(self.rng, "Q8_0", VOCAB, HIDDEN)), "input_ids")
        x = ops.rms_norm(residual, random_norm(self.rng), 1e-5)
        for index in range(LAYERS):
            layer = AttentionLayer(0, index, HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5, rotary=rotary)
            qkv = ops.linear(x, self._weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN))
            x = ops.linear(ops.paged_attention(ops.rotary_kv_write(qkv, layer), layer), self._weight(HIDDEN, HIDDEN))
            x, residual = ops.add_rms_norm(x, residual, random_norm(self.rng), 1e-5)
            x = ops.gated_activation(ops.linear(x, self._weight(2 * FF, HIDDEN)), "silu")
            x, residual = ops.add_rms_norm(
                ops.linear(x, self._weight(HIDDEN, FF)), residual, random_norm(self.rng), 1e-5
            )
        return (x,)

    def logits(self, ops: Ops, hidden: Tensor) -> Tensor:
        dtype: DType = "F32" if self.dtype == "F32" else "Q8_0"
        return ops.linear(hidden, linear(random_weight(self.rng, dtype, VOCAB, HIDDEN)))

    def _weight(self, rows: int, cols: int) -> Linear:
        return linear(random_weight(self.rng, self.dtype, rows, cols))


def make_batch(num_seqs: int, computed: int, new: int) -> StepBatch:
    table_len = MAX_LEN // BLOCK_SIZE
    used = -(-(computed + new) // BLOCK_SIZE)
    tables = np.zeros((64, table_len), np.int32)
    tables[:num_seqs, :used] = np.random.default_rng(1).permutation(num_seqs * used).reshape(num_seqs, used) + 1
    return StepBatch(
        input_ids=np.random.default_rng(2).integers(0, VOCAB, num_seqs * new, np.int32),
        positions=np.tile(np.arange(computed, computed + new, dtype=np.int32), num_seqs),
        query_start_loc=np.arange(num_seqs + 1, dtype=np.int32) * np.int32(new),
        seq_lens=np.full(num_seqs, computed + new, np.int32),
        rows=np.arange(num_seqs, dtype=np.int32),
        block_tables=(tables,),
    )


def measure(model: CpuModel, name: str, repeat: int) -> None:
    num_seqs, computed, new = STEPS[name]
    batch = make_batch(num_seqs, computed, new)
    last = batch.query_start_loc[1:] - 1
    best, shares = float("inf"), ""
    for _ in range(repeat):
        model.measure(True)
        before = time.perf_counter()
        model.forward(batch)
        model.logits(last)
        seconds = time.perf_counter() - before
        if seconds < best:
            best = seconds
            shares = "  ".join(f"{entry.op} {entry.seconds / seconds:.1%}" for entry in model.op_times())
    print(f"{name:16} {num_seqs * new / best:8.1f} tok/s  {best * 1e3:8.2f} ms   {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--dtype", default="Q4_1", choices=["F32", *HALF_SCALES])
    parser.add_argument("--kv-dtype", default="float16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeat", type=int, default=10)
    arguments = parser.parse_args()
    num_blocks = 1 + 64 * 20
    kv = KVLayout(0, BLOCK_SIZE, (KVGroup(LAYERS, KV_HEADS, HEAD_DIM),), arguments.kv_dtype)
    limits = StepLimits(512, 64, MAX_LEN, VOCAB)
    model = CpuDevice(arguments.threads).load(Decoder(arguments.dtype), kv, limits, "float32").bind(num_blocks)
    model.pool.fill(0)
    print(f"{model.packed_bytes / 1e6:.0f} MB of packed weights")
    for name in STEPS:
        measure(model, name, arguments.repeat)


if __name__ == "__main__":
    main()
