"""The kernels of latent attention: heads' own products, and attention over latents, in float32 and as published."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, needs_gpu, relative_error

from octavo.kernels.cuda.driver import GPU  # isort: skip
from octavo.kernels.cuda.step import DeviceStep, StepKind  # isort: skip
from octavo.kernels.device import StepLimits  # isort: skip
from octavo.kernels.kv_layout import KVDType  # isort: skip
from octavo.kernels.triton.attention.latent_attention import LatentAttention  # isort: skip
from octavo.kernels.triton.attention.memory import AttentionMemory  # isort: skip
from octavo.kernels.triton.linear.head_linear import head_linear  # isort: skip
from tests.gpu.paged_batch import KV_DTYPE, PagedBatch, make_batch  # isort: skip

TYPES = [torch.bfloat16, torch.float16, torch.float32] if ON_GPU else [torch.float32]
DECODES = [(290, 1), (0, 1), (130, 1), (31, 1)]
MIXED = [(140, 23), (270, 1), (0, 5)]


def attend(batch: PagedBatch, multiprocessors: int, threshold: int = 1, *, chained: bool = False) -> torch.Tensor:
    num_tokens, num_seqs = len(batch.positions), len(batch.query_lens)
    gpu = GPU("here", torch.cuda.get_device_capability() if ON_GPU else (8, 0), 1, multiprocessors)
    limits, dtype = StepLimits(num_tokens, num_seqs, 1 << 14, 1), KV_DTYPE[batch.qkv.dtype]
    memory = AttentionMemory([batch.layer], batch.layout, limits, gpu, DEVICE, dtype)
    memory.bind(batch.raw_pool.view(torch.uint8))
    tables = batch.block_tables(batch.block_table)
    kind = StepKind.of(replace(batch.step(threshold), query_start_loc=batch.query_start_loc.cpu().numpy()))
    step = DeviceStep(batch.positions, batch.positions, batch.query_start_loc, batch.seq_lens, batch.rows, tables, kind)
    q = batch.split_qkv()[0].flatten(1).contiguous()
    out = torch.full((len(q), batch.layer.num_heads * batch.layer.value_dim), torch.nan, dtype=q.dtype, device=DEVICE)
    backend = LatentAttention(memory)
    if kind.has_decodes:
        backend.decode(batch.layer, None, backend.prefill)(step, q, out)  # type: ignore[arg-type]
    if kind.has_chunks:
        backend.prefill(batch.layer, backend.prefill)(step, q, out)  # type: ignore[arg-type]
    return out


def check(batch: PagedBatch, multiprocessors: int, threshold: int = 1) -> None:
    expected = batch.attend(batch.split_qkv()[0])
    assert relative_error(attend(batch, multiprocessors, threshold), expected) < TOLERANCE[batch.qkv.dtype]
    assert batch.is_null_block_as_it_was


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("seqs", "multiprocessors", "threshold"),
    [(DECODES, 1, 1), (DECODES, 6, 1), (MIXED, 1, 1), (MIXED[1:], 12, 16)],
    ids=["one share", "several shares", "chunks", "some new tokens"],
)
@pytest.mark.parametrize("codes", [None, "fp8", "int8"])
def test_attention(
    codes: KVDType | None, dtype: torch.dtype, seqs: list[tuple[int, int]], multiprocessors: int, threshold: int
) -> None:
    batch = make_batch(seqs, num_heads=6, num_kv_heads=1, head_dim=32, latent_rank=24, dtype=dtype, codes=codes)
    check(batch, multiprocessors, threshold)


@needs_gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("num_heads", [16, 64, 96, 128])
@pytest.mark.parametrize("seqs", [[(4000, 1), (17, 1)], [(3000, 300), (0, 77), (900, 1)]])
@pytest.mark.parametrize("codes", [None, "fp8", "int8"])
def test_published_sizes(
    codes: KVDType | None, dtype: torch.dtype, num_heads: int, seqs: list[tuple[int, int]]
) -> None:
    shape = {"num_heads": num_heads, "num_kv_heads": 1, "head_dim": 576, "latent_rank": 512}
    check(make_batch(seqs, dtype=dtype, codes=codes, **shape), 132)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens", [3, 70])
@pytest.mark.parametrize("gives_values", [False, True])
def test_products_of_heads(dtype: torch.dtype, tokens: int, gives_values: bool) -> None:
    """Between columns that other kernels read and write, which stay as they are; in a deterministic engine a row's
    result is the same to the bit beside any others."""
    heads, inputs, outputs, beside = 3, 70, 40, 8
    up = torch.randn(heads, outputs, inputs, device=DEVICE).to(dtype)
    weight = up.transpose(1, 2) if gives_values else up.transpose(1, 2).contiguous()
    x = torch.randn(tokens, heads * (inputs + beside), device=DEVICE).to(dtype)
    out = torch.full((tokens, heads * (outputs + beside)), 7.0, device=DEVICE).to(dtype)
    head_linear(x, weight, out, x_step=inputs + beside, out_step=outputs + beside)
    found, own = out.view(tokens, heads, -1), x.view(tokens, heads, -1)[..., :inputs].float()
    expected = torch.einsum("thi,hio->tho", own, weight.float())
    assert relative_error(found[..., :outputs], expected) < TOLERANCE[dtype]
    assert (found[..., outputs:] == 7.0).all()
    fixed = [torch.empty_like(rows) for rows in (out, out[-1:])]
    for rows, to in zip((x, x[-1:]), fixed, strict=True):
        head_linear(rows, weight, to, x_step=inputs + beside, out_step=outputs + beside, is_fixed=True)
    together, alone = (each.view(-1, heads, outputs + beside)[-1, :, :outputs] for each in fixed)
    assert torch.equal(together, alone)
