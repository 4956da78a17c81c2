"""Decode attention of a step's only sequence against float32 softmax over the same cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.gpu.device import ON_GPU, needs_gpu

from octavo.kernels.cuda.driver import find_gpu  # isort: skip
from tests.gpu.one_sequence import check_alone, run_alone  # isort: skip
from tests.gpu.paged_batch import make_batch  # isort: skip

GPU = find_gpu(0) if ON_GPU else None
pytestmark = [
    needs_gpu,
    pytest.mark.skipif(GPU is None or GPU.capability[0] != 9, reason="it needs Hopper's clusters"),
]
QWEN: dict[str, Any] = {"num_heads": 32, "num_kv_heads": 4, "head_dim": 128, "rotary_dim": 128, "has_norm": True}
LLAMA: dict[str, Any] = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "rotary_dim": 128, "block_size": 32}
SINKS: dict[str, Any] = {"num_heads": 64, "num_kv_heads": 8, "head_dim": 64, "rotary_dim": 64, "has_sinks": True}
OTHER: dict[str, Any] = {"num_heads": 5, "num_kv_heads": 1, "head_dim": 128, "rotary_dim": 64, "softcap": 2.0}


@pytest.mark.parametrize("cached", [0, 1, 15, 16, 17, 127, 128, 500, 639, 1023, 1024, 1100, 1535, 2048, 5000, 30000])
@pytest.mark.parametrize("layer", [QWEN, LLAMA, SINKS], ids=["norm", "rotation", "sinks"])
def test_contexts(layer: dict[str, Any], cached: int) -> None:
    """One token to more than the clusters' rings hold."""
    assert GPU is not None
    check_alone(make_batch([(cached, 1)], dtype=torch.bfloat16, seed=cached, **layer), GPU)


@pytest.mark.parametrize("cached", [5, 100, 128, 700, 3000])
@pytest.mark.parametrize("window", [5, 128, 2000])
def test_windows(window: int, cached: int) -> None:
    assert GPU is not None
    for layer in (SINKS, OTHER):
        check_alone(make_batch([(cached, 1)], dtype=torch.float16, window=window, seed=cached, **layer), GPU)


def test_what_does_not_decode() -> None:
    """Padding, and a chunk."""
    assert GPU is not None
    padding, chunk = make_batch([(40, 1)], **LLAMA), make_batch([(40, 2)], **LLAMA)
    padding.seq_lens.zero_()
    for batch in (padding, chunk):
        before = batch.raw_pool.clone()
        assert run_alone(batch, GPU).isnan().all()
        assert torch.equal(batch.raw_pool.nan_to_num(7), before.nan_to_num(7)), "nothing is written"
