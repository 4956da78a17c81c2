"""The kernels of a deterministic engine: right, and the same to the bit whatever else a step computes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, relative_error

from octavo.kernels.cuda.driver import GPU  # isort: skip
from octavo.kernels.cuda.step import DeviceStep, StepKind  # isort: skip
from octavo.kernels.device import StepLimits  # isort: skip
from octavo.kernels.triton.attention.fixed_part import num_parts  # isort: skip
from octavo.kernels.triton.attention.memory import AttentionMemory  # isort: skip
from octavo.kernels.triton.attention.triton_attention import FixedAttention  # isort: skip
from octavo.kernels.triton.linear.fixed_linear import fixed_linear, tile_for  # isort: skip
from tests.gpu.paged_batch import PagedBatch, make_batch  # isort: skip

TYPES = [torch.bfloat16, torch.float16, torch.float32] if ON_GPU else [torch.float32]
CONTEXT = [(4200, 1), (0, 70), (257, 40), (0, 1), (0, 0), (255, 1), (256, 1)]


def attend(batch: PagedBatch, *, chained: bool = False) -> torch.Tensor:
    num_tokens, num_seqs = len(batch.positions), len(batch.query_lens)
    gpu = GPU("here", (9, 0) if chained else (8, 0), 1, 1)
    memory = AttentionMemory([batch.layer], batch.layout, StepLimits(num_tokens, num_seqs, 1 << 14, 1), gpu, DEVICE)
    memory.sinks = {} if batch.layer.sinks is None else {batch.layer: batch.pool.sinks}
    memory.bind(batch.raw_pool.view(torch.uint8))
    tables = batch.block_tables(batch.block_table)
    kind = StepKind.of(replace(batch.step(), query_start_loc=batch.query_start_loc.cpu().numpy()))
    step = DeviceStep(batch.positions, batch.positions, batch.query_start_loc, batch.seq_lens, batch.rows, tables, kind)
    q = batch.split_qkv()[0].flatten(1).contiguous()
    out = torch.full((len(q), batch.layer.num_heads * batch.layer.value_dim), torch.nan, dtype=q.dtype, device=DEVICE)
    backend = FixedAttention(memory)
    if kind.has_decodes:
        backend.decode(batch.layer, None, backend.prefill)(step, q, out)  # type: ignore[arg-type]
    if kind.has_chunks:
        backend.prefill(batch.layer, backend.prefill)(step, q, out)  # type: ignore[arg-type]
    return out


def part_of(batch: PagedBatch, seq: int, begin: int, end: int) -> PagedBatch:
    """A step with some of the new tokens of one sequence, over the same cache."""
    start = int(batch.query_start_loc[seq])
    tokens = slice(start + begin, start + end)
    length = int(batch.seq_lens[seq]) - batch.query_lens[seq] + end
    lens = torch.tensor([length], dtype=torch.int32, device=DEVICE)
    starts = torch.tensor([0, end - begin], dtype=torch.int32, device=DEVICE)
    return replace(
        batch, qkv=batch.qkv[tokens], positions=batch.positions[tokens], query_lens=[end - begin], seq_lens=lens,
        query_start_loc=starts, rows=batch.rows[seq : seq + 1],
    )  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "kind",
    [
        {"num_heads": 2, "num_kv_heads": 1},
        {"num_heads": 6, "num_kv_heads": 1, "window": 200, "head_dim": 48},
        {"softcap": 3.0, "block_size": 32, "head_dim": 16},
        {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "codes": "fp8", "has_sinks": True},
        {"num_heads": 6, "num_kv_heads": 1, "head_dim": 32, "latent_rank": 24},
        {"num_heads": 17, "num_kv_heads": 1, "head_dim": 32, "latent_rank": 24, "codes": "int8"},
    ],
)
def test_attention_of_a_token_does_not_depend_on_its_step(kind: dict[str, object], dtype: torch.dtype) -> None:
    contexts = CONTEXT if ON_GPU or len(kind) == 2 else CONTEXT[1:5]  # more is slow under the interpreter
    if "latent_rank" in kind and not ON_GPU:  # whose tiles are low in float32
        contexts = [(257, 3), (0, 5), (0, 0), (255, 1)]
    batch = make_batch(contexts, dtype=dtype, **kind)  # type: ignore[arg-type]
    together = attend(batch)
    expected = batch.attend(batch.split_qkv()[0])
    assert relative_error(together, expected) < TOLERANCE[dtype]
    for seq, count in enumerate(batch.query_lens):
        if count == 0:
            continue
        start, third = int(batch.query_start_loc[seq]), -(-count // 3)
        cuts = {0, min(third, count - 1), min(third + 1, count - 1), count}  # one new token is a decode
        for begin, end in pairwise(sorted(cuts)):
            alone = attend(part_of(batch, seq, begin, end))
            assert torch.equal(alone, together[start + begin : start + end]), f"sequence {seq}, {begin} to {end}"


def test_parts_are_few_and_cover_any_length() -> None:
    assert [num_parts(length) for length in (0, 1, 256, 257, 4096, 4097, 20480, 20481)] == [
        0, 1, 1, 2, 16, 17, 32, 33
    ]  # fmt: skip
    assert num_parts(1 << 20) < 80


@pytest.mark.parametrize("chained", [False, True] if ON_GPU else [False])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("columns", "depth"), [(1024, 1024), (4096, 3000), (16400, 256)] if ON_GPU else [(50, 72)])
def test_a_row_times_a_weight_does_not_depend_on_other_rows(
    columns: int, depth: int, dtype: torch.dtype, chained: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(1030, depth, device=DEVICE).to(dtype)
    weight = (torch.randn(columns, depth, device=DEVICE) / depth**0.5).to(dtype)
    bias = torch.randn(columns, device=DEVICE).to(dtype)
    rows = (1, 16, 64, 65, 300, 512, 513, 1030)
    assert len({tile_for(count, columns) for count in rows}) == 3
    results = []
    for count in rows:
        out = torch.empty(count, columns, device=DEVICE, dtype=dtype)
        fixed_linear(x[-count:], weight, out, bias=bias, chained=chained and DEVICE.type == "cuda")
        results.append(out)
    whole = results[-1]
    assert relative_error(whole, x.float() @ weight.float().T + bias.float()) < TOLERANCE[dtype]
    for count, out in zip(rows, results, strict=True):
        assert torch.equal(out, whole[-count:]), f"{count} rows"
