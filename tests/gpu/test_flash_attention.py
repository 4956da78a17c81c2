"""The optional library attention against float32 softmax over the same cache, decodes left alone."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, relative_error

from octavo.kernels.external.flash_attention import FlashAttention, why_not  # isort: skip
from tests.gpu.paged_batch import make_batch  # isort: skip

CAPABILITY = torch.cuda.get_device_capability() if ON_GPU else (0, 0)
if (reason := why_not(CAPABILITY)) is not None:
    pytest.skip(reason, allow_module_level=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 64), (8, 2, 128), (4, 4, 128)])
def test_chunks_beside_decodes(dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    seqs = [(0, 300), (70, 1), (16, 129), (2000, 257), (0, 1), (15, 2)]
    batch = make_batch(seqs, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype)
    q = torch.randn(len(batch.positions), num_heads * head_dim, device=DEVICE).to(dtype)
    out = torch.full_like(q, 3.0)
    expected = batch.attend(q.view(len(q), num_heads, head_dim))
    num_queries = torch.tensor([n if n > 1 else 0 for _, n in seqs], dtype=torch.int32, device=DEVICE)
    FlashAttention().prefill(
        q, out, batch.layer, batch.pool,
        query_start_loc=batch.query_start_loc, num_queries=num_queries, seq_lens=batch.seq_lens,
        block_table=batch.block_table[batch.rows.long()].contiguous(), max_chunk=300, max_seq_len=2257,
    )  # fmt: skip
    for s, (_, num_new) in enumerate(seqs):
        start = int(batch.query_start_loc[s])
        rows = slice(start, start + num_new)
        if num_new == 1:
            assert (out[rows] == 3.0).all()
        else:
            assert relative_error(out[rows], expected[rows]) < TOLERANCE[dtype]
