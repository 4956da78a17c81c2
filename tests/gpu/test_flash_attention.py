"""The optional library attention against float32 softmax over the same cache; decodes are not touched."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, relative_error

from octavo.kernels.cuda.driver import GPU  # isort: skip
from octavo.kernels.cuda.step import DeviceStep, StepKind  # isort: skip
from octavo.kernels.external import flash_attention  # isort: skip
from octavo.kernels.external.flash_attention import FlashAttention  # isort: skip
from octavo.kernels.device import StepLimits  # isort: skip
from octavo.kernels.triton.attention.memory import AttentionMemory  # isort: skip
from tests.gpu.paged_batch import make_batch  # isort: skip

HERE = GPU("here", torch.cuda.get_device_capability() if ON_GPU else (0, 0), 1, 1)
PLAIN = make_batch([(0, 2)])
if reasons := FlashAttention.why_not(PLAIN.layer, "bfloat16", PLAIN.layout, HERE):
    pytest.skip(reasons[0], allow_module_level=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 64), (8, 2, 128), (4, 4, 128)])
def test_chunks_beside_decodes(
    dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash_attention, "MIN_CHUNK", 2)
    seqs = [(0, 300), (70, 1), (16, 129), (2000, 257), (0, 1), (15, 2)]
    batch = make_batch(seqs, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype)
    q = torch.randn(len(batch.positions), num_heads * head_dim, device=DEVICE).to(dtype)
    out = torch.full_like(q, 3.0)
    expected = batch.attend(q.view(len(q), num_heads, head_dim))
    memory = AttentionMemory([batch.layer], batch.layout, StepLimits(len(q), len(seqs), 1 << 15, 1), HERE, DEVICE)
    memory.bind(batch.raw_pool.view(torch.uint8))
    step = DeviceStep(
        batch.positions, batch.positions, batch.query_start_loc, batch.seq_lens, batch.rows,
        (batch.block_table[batch.rows.long()].contiguous(),), StepKind.of(batch.step()), max_chunk=300,
        max_seq_len=2257,
    )  # fmt: skip
    backend = FlashAttention(memory)
    backend.plan(step)
    backend.prefill(batch.layer, lambda *step: pytest.fail("all chunks go to the library"))(step, q, out)
    for s, (_, num_new) in enumerate(seqs):
        start = int(batch.query_start_loc[s])
        rows = slice(start, start + num_new)
        if num_new == 1:
            assert (out[rows] == 3.0).all()
        else:
            assert relative_error(out[rows], expected[rows]) < TOLERANCE[dtype]
