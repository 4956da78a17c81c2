"""The worked examples of docs/guides/kernels.md: they compile, and on a GPU they equal float32 attention."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
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
    copies = False if name == "fp8_cache" else None
    assert kind.compile(gpu, has_copy_engine=copies, source=EXAMPLES[name]).startswith(b"\x7fELF")


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


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dim", "fused"), [(128, True), (64, True), (96, False), (256, False)])
def test_fp8_cache(dim: int, fused: bool, dtype: torch.dtype) -> None:
    norm = {"has_norm": True, "rotary_dim": dim} if fused else {}
    batch = sharing_batch(head_dim=dim, dtype=dtype, **norm)
    pool, layer = batch.pool, batch.layer
    scales = torch.linspace(0.01, 0.04, 2 * layer.num_kv_heads, device=DEVICE)  # the keys' scales, then the values'
    place = torch.arange(len(pool.data), device=DEVICE) % pool.block_stride
    head = (place // (pool.block_size * dim)).clamp(max=len(scales) - 1)  # any scale will do for other layers
    stored = (pool.data.float() / scales[head]).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    null_block = stored[: pool.block_stride].clone()

    q, k, v = transformed_heads(batch)
    out, plan = run(
        replace(batch, pool=replace(pool, data=stored)), fused=fused, shares=True, copies=False,
        source=EXAMPLES["fp8_cache"], hooks=(scales.data_ptr(), scales[layer.num_kv_heads :].data_ptr()),
    )  # fmt: skip
    assert plan.units[: int(plan.totals[0]), 10].any(), "nothing was shared"
    read = replace(batch, pool=replace(pool, data=stored.view(torch.float8_e4m3fn).float() * scales[head]))
    of_keys, of_values = scales.view(2, -1, 1).unbind()
    for s, new in enumerate(sequences(batch) if fused else []):
        assert_rounded_once(read.keys(s)[-1], k[new][0], of_keys)
        assert_rounded_once(read.values(s)[-1], v[new][0], of_values)
    assert relative_error(out, read.attend(q)) < TOLERANCE[dtype] * (1 if dtype == torch.bfloat16 else 2)
    assert torch.equal(stored[: pool.block_stride], null_block)


def assert_rounded_once(kept: torch.Tensor, exact: torch.Tensor, scale: torch.Tensor) -> None:
    """By half of e4m3's last bit (three follow the point; the smallest number is 2**-9), after 16 bits' rounding."""
    exact = exact.float().clamp(-448 * scale, 448 * scale)
    assert ((kept - exact).abs() <= exact.abs() * (1 / 16 + 1 / 256) + scale * 2**-10).all()


def test_the_bits_of_fp8() -> None:
    """The two conversions of fp8_cache.cu, in numpy, for every byte and for numbers in between."""
    every = np.arange(256, dtype=np.uint32)
    exact = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    numbers = ~np.isnan(exact)
    halves = ((every << 8) & 0x8000) | (((every << 8) & 0x7F00) >> 1)
    assert (halves.astype(np.uint16).view(np.float16).astype(np.float32) * 256)[numbers].tolist() == exact[
        numbers
    ].tolist()

    positive = np.sort(exact[numbers & (every < 128)])
    middle = (positive[:-1] + positive[1:]) / 2  # ties round to even
    x = np.concatenate([positive, middle, middle * 1.001, middle * 0.999, [1e4]]).astype(np.float32)
    bits = (np.minimum(x, np.float32(448)) * np.float32(2.0**-120)).view(np.uint32)
    got = (bits + 0x7FFFF + (bits >> 20 & 1)) >> 20
    index = np.arange(len(middle))
    expected = [*range(len(positive)), *(index + index % 2), *(index + 1), *index, len(positive) - 1]
    assert got.tolist() == expected
