"""Sampling on a GPU: microseconds per step for vocabularies of 151,936, beside a plain softmax in torch.

    python -m benchmarks.kernels.gpu_sampling

peaked: logits like a language model's, a few tokens holding most of the mass. flat: unit normal, where top_p 0.9
keeps about a hundred thousand tokens: the slow path of `draw.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from octavo.kernels.cuda.timing import graph_time_us, print_machine
from octavo.kernels.triton.sampling.draw import sample
from octavo.kernels.triton.sampling.edited_rows import SamplingWorkspace
from octavo.kernels.triton.sampling.entries import DeviceSamplingBatch
from octavo.kernels.triton.sampling.logits_scan import LogitsScan
from octavo.kernels.triton.sampling.logprobs import top_logprobs
from octavo.sampling.columns import COLUMNS, NUMBERS, RAGGED, SamplingBatch
from octavo.sampling_params import SamplingParams, parameters_that

VOCAB = 151936
CUDA = torch.device("cuda")


def device_batch(num: int, history: int = 0, **given: float) -> DeviceSamplingBatch:
    rng = np.random.default_rng(0)
    given |= dict.fromkeys(parameters_that("edits"), 0.9) if history else {}
    neutral = SamplingParams()
    columns: dict[str, Any] = {
        name: np.full(num, given.get(name, getattr(neutral, name, 0)), dtype) for name, dtype in NUMBERS.items()
    }
    columns |= {"logits_rows": np.arange(num, dtype=np.int32), "prompt_lens": np.full(num, history // 2, np.int32)}
    columns |= {"seeds": rng.integers(0, 1 << 62, num, dtype=np.uint64), "positions": rng.integers(0, 1000, num)}
    columns |= {name: np.zeros(1, COLUMNS[name]) for name in RAGGED}
    columns |= dict.fromkeys(RAGGED.values(), np.zeros(num + 1, np.int32))
    columns["history"] = rng.integers(0, VOCAB, max(1, num * history)).astype(np.int32)
    columns["history_offsets"] = (np.arange(num + 1) * history).astype(np.int32)
    return DeviceSamplingBatch.of(
        SamplingBatch(**columns), lambda arrays: [torch.as_tensor(one, device=CUDA) for one in arrays]
    )


def logits_of(kind: str, num: int, dtype: torch.dtype) -> torch.Tensor:
    logits = torch.randn(num, VOCAB, device=CUDA) * (2 if kind == "peaked" else 1)
    if kind == "peaked":
        logits.scatter_add_(1, torch.randint(VOCAB, (num, 30), device=CUDA), torch.rand(num, 30, device=CUDA) * 16)
    return logits.to(dtype)


def time_us(num: int, dtype: torch.dtype, kind: str, columns: dict[str, float]) -> float:
    rows = [logits_of(kind, num, dtype) for _ in range(2 if num > 64 else 8)]
    batch = device_batch(num, **columns)  # type: ignore[arg-type]
    workspace = SamplingWorkspace.allocate(num, VOCAB, CUDA, edits="history" in columns)
    tokens = torch.empty(num, dtype=torch.int32, device=CUDA)
    has_filters = any(name in columns for name in parameters_that("filters"))

    def call(logits: torch.Tensor) -> Callable[[], None]:
        return lambda: sample(
            logits, batch, tokens, workspace, has_edits="history" in columns, has_filters=has_filters, chained=True
        )

    return graph_time_us([call(logits) for logits in rows])


def main() -> None:
    print_machine()
    cases: list[tuple[str, str, dict[str, float]]] = [
        ("greedy", "peaked", {"temperature": 0.0}),
        ("temperature", "peaked", {"temperature": 0.7}),
        ("top_k 20, top_p 0.95", "peaked", {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
        ("top_p 0.9", "peaked", {"top_p": 0.9}),
        ("min_p 0.05", "peaked", {"min_p": 0.05}),
        ("penalties, 1000 tokens", "peaked", {"history": 1000}),
        ("top_k 50", "flat", {"top_k": 50}),
        ("top_p 0.9, flat", "flat", {"top_p": 0.9}),
    ]
    sizes = [(n, d) for d in (torch.bfloat16, torch.float32) for n in (1, 32, 256)]
    print("\nsampling, us a step: rows x logits type")
    print(f"{'':>24}" + "".join(f"{n:>6} x {str(d)[6:]:<8}" for n, d in sizes))
    for name, kind, columns in cases:
        print(f"{name:>24}" + "".join(f"{time_us(n, d, kind, columns):>12.1f}     " for n, d in sizes), flush=True)
    for num in (1, 256):
        print(logprobs_line(num), flush=True)


def logprobs_line(num: int) -> str:
    logits = [logits_of("peaked", num, torch.bfloat16) for _ in range(2)]
    tokens = torch.zeros(num, dtype=torch.int32, device=CUDA)
    scan = LogitsScan.allocate(num, VOCAB, CUDA)
    ids = torch.empty(num, 21, dtype=torch.int32, device=CUDA)
    values, ranks = torch.empty(num, 21, device=CUDA), torch.empty(num, dtype=torch.int32, device=CUDA)
    ours = graph_time_us([lambda x=x: top_logprobs(x, tokens, ids, values, ranks, scan, chained=True) for x in logits])
    softmax = graph_time_us([lambda x=x: torch.softmax(x, -1, dtype=torch.float32) for x in logits])
    ordered = graph_time_us([lambda x=x: torch.sort(x, -1, descending=True) for x in logits])
    return f"{num:>4} rows bf16: logprobs with k=20 {ours:.1f}; torch softmax {softmax:.1f}, sort {ordered:.1f}"


if __name__ == "__main__":
    main()
