"""The worked examples of docs/guides/kernels.md: they compile, and on a GPU they equal float32 attention."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch

from tests.gpu.device import DEVICE, TOLERANCE, needs_gpu, relative_error

from octavo.kernels.cuda.driver import GPU  # isort: skip
from octavo.kernels.cuda_cpp.compile import find_nvcc  # isort: skip
from octavo.kernels.cuda_cpp.decode_attention import Kind  # isort: skip
from octavo.kernels.cuda_cpp.shape import Shape  # isort: skip
from tests.gpu.paged_batch import PagedBatch, make_batch  # isort: skip
from tests.gpu.test_attention import transformed_heads  # isort: skip
from tests.gpu.test_cuda_attention import DECODES, run  # isort: skip

FOLDER = Path(__file__).parents[2] / "examples/kernels"
EXAMPLES = {path.stem: path for path in sorted(FOLDER.glob("*.cu"))}
CAPABILITIES = ((8, 0), (9, 0))

needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="there is no nvcc")


@needs_nvcc
@pytest.mark.parametrize(("name", "capability", "fused"), [*product(EXAMPLES, CAPABILITIES, (True, False))])
def test_it_compiles(name: str, capability: tuple[int, int], fused: bool) -> None:
    kind = Kind(128, Shape(2, 4), torch.bfloat16, 16, False, False, fused, 128 if fused else 0, fused)
    gpu = GPU("a GPU", capability, 1 << 34, 1)
    assert kind.compile(gpu, source=EXAMPLES[name]).startswith(b"\x7fELF")


def sharing_batch(**how: object) -> PagedBatch:
    """40 sequences, most of which share 1024 tokens, and ragged ones. Some of the units have 64 rows."""
    batch = make_batch([(1024 + 3 * i, 1) for i in range(40)] + DECODES, num_heads=16, num_kv_heads=4, **how)  # type: ignore[arg-type]
    blocks = 1024 // batch.pool.block_size
    batch.block_table[batch.rows[1:37].long(), :blocks] = batch.block_table[batch.rows[0].long(), :blocks]
    return batch


def sequences(batch: PagedBatch) -> list[slice]:
    """The rows of each sequence's new tokens."""
    starts = batch.query_start_loc.tolist()
    return [slice(*pair) for pair in pairwise(starts)]


@needs_gpu
@pytest.mark.parametrize(("dim", "rotary", "copies"), [(128, 128, True), (64, 32, True), (96, 96, False)])
def test_interleaved_rotary(dim: int, rotary: int, copies: bool) -> None:
    batch = sharing_batch(head_dim=dim, has_norm=True, rotary_dim=rotary)
    table = batch.layer.rotary
    assert table is not None
    q, k, _ = transformed_heads(replace(batch, layer=replace(batch.layer, rotary=None)))  # normed
    cos, sin = (torch.as_tensor(x).to(q)[batch.positions][:, None] for x in (table.cos, table.sin))
    for x in (q, k):
        even, odd = x[..., 0:rotary:2].clone(), x[..., 1:rotary:2].clone()
        x[..., 0:rotary:2], x[..., 1:rotary:2] = even * cos - odd * sin, odd * cos + even * sin
    out, plan = run(batch, fused=True, shares=True, copies=copies, source=EXAMPLES["interleaved_rotary"])
    assert plan.units[: int(plan.totals[0]), 10].any(), "nothing was shared"
    tolerance = TOLERANCE[batch.qkv.dtype]
    for s, new in enumerate(sequences(batch)):
        assert relative_error(batch.keys(s)[-1], k[new][0]) < tolerance
    assert relative_error(out, batch.attend(q)) < tolerance


def alibi_and_sinks(batch: PagedBatch, q: torch.Tensor, slopes: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """In float32 -> [T, Q * D]."""
    group, out = batch.layer.num_heads // batch.layer.num_kv_heads, []
    for s, new in enumerate(sequences(batch)):
        k, v = (x.float().repeat_interleave(group, 1) for x in (batch.keys(s), batch.values(s)))
        distance = batch.positions[new, None] - torch.arange(len(k), device=DEVICE)  # [queries, keys]
        scores = torch.einsum("qhd,khd->hqk", q[new].float(), k) * batch.layer.scale
        scores = (scores - slopes[:, None, None] * distance).masked_fill(distance < 0, -torch.inf)
        with_sink = torch.cat([scores, sinks[:, None, None].expand(-1, len(distance), 1)], -1)
        out.append(torch.einsum("hqk,khd->qhd", with_sink.softmax(-1)[..., :-1], v).flatten(1))
    return torch.cat(out)


@needs_gpu
@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize(("dim", "queries"), [(128, 1), (64, 1), (64, 4)])
def test_alibi_and_sinks(dim: int, queries: int, copies: bool) -> None:
    if queries == 1:
        batch = sharing_batch(head_dim=dim)
    else:
        batch = make_batch([(530, 4), (15, 1), (0, 4), (1000, 3)], num_heads=16, num_kv_heads=4, head_dim=dim)
    heads = torch.arange(batch.layer.num_heads, device=DEVICE)
    slopes, sinks = 2.0 ** (-(heads + 1) / 2), heads / 4 - 1.5
    log2 = [x * math.log2(math.e) for x in (slopes, sinks)]
    out, _ = run(
        batch, fused=queries == 1, shares=True, threshold=queries, copies=copies, source=EXAMPLES["alibi_sinks"],
        hooks=tuple(x.data_ptr() for x in log2),
    )  # fmt: skip
    expected = alibi_and_sinks(batch, batch.split_qkv()[0], slopes, sinks)
    assert relative_error(out, expected) < TOLERANCE[batch.qkv.dtype]
