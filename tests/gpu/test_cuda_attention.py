"""Decode attention in CUDA C++ against float32 softmax over the same cache: plans with and without shared blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, needs_gpu, relative_error

from octavo.kernels.cuda.weights import DeviceWeights  # isort: skip
from octavo.kernels.kv_layout import LARGEST_CODE, KVDType  # isort: skip
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform  # isort: skip
from tests.gpu.paged_batch import PagedBatch, make_batch  # isort: skip
from tests.gpu.test_attention import check_written, transformed_heads  # isort: skip

pytestmark = needs_gpu

if ON_GPU:
    from octavo.kernels.cuda.driver import find_gpu
    from octavo.kernels.cuda_cpp.attention_plan import SharedPlan
    from octavo.kernels.cuda_cpp.decode_attention import DecodeAttention, Kind, Partials
    from octavo.kernels.cuda_cpp.shape import Shape


def share(batch: PagedBatch, seed: int) -> int:
    """Make random sequences begin with the blocks of an earlier one; returns the number of blocks shared."""
    rng = np.random.default_rng(seed)
    num, total = len(batch.query_lens), 0
    size = batch.pool.block_size
    for target in range(1, num):
        if rng.random() < 0.2:
            continue
        source = int(rng.integers(0, target))
        full = [(int(batch.seq_lens[s]) - batch.query_lens[s]) // size for s in (source, target)]
        blocks = int(rng.integers(0, min(full) + 1)) if rng.random() < 0.7 else min(full)
        rows = batch.rows[[source, target]].tolist()
        batch.block_table[rows[1], :blocks] = batch.block_table[rows[0], :blocks]
        total += blocks
    return total


def run(
    batch: PagedBatch, *, fused: bool, shares: bool, threshold: int = 1, fixed_part: int = 0, copies: bool = True,
    source: Path | None = None, hooks: tuple[int, ...] = (), scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, SharedPlan]:  # fmt: skip
    """source, hooks: a custom kernel, and the addresses passed to it. scales: of rows and columns, which qkv lacks."""
    layer, gpu = batch.layer, find_gpu(0)
    assert gpu is not None
    shape = Shape.of(layer, threshold)
    num, tokens = len(batch.query_lens), int(batch.seq_lens.sum())
    has_codes = batch.layout.dtype in LARGEST_CODE
    plan = SharedPlan(
        shape, num, shape.num_stretches(gpu, layer.head_dim, has_codes=has_codes), gpu, DEVICE,
        shares=shares, fixed_part=fixed_part, max_num_tokens=tokens, has_codes=has_codes,
    )  # fmt: skip
    partials = Partials.allocate(plan.max_part_rows(), num, shape, layer.head_dim, DEVICE)
    transform = HeadTransform.of(layer, DeviceWeights(DEVICE, torch.float32)) if fused else None
    if transform is not None and scales is not None:
        transform = replace(transform, row_scales=scales[0], column_scales=scales[1])
    kind = Kind.of(layer, batch.qkv.dtype, batch.layout, fused, threshold)
    kernel = DecodeAttention(kind, gpu, has_copy_engine=copies, source=source, hooks=hooks)
    q = batch.qkv if fused else batch.split_qkv()[0].flatten(1).contiguous()
    out = torch.full((len(q), layer.num_heads * layer.head_dim), torch.nan, device=DEVICE, dtype=q.dtype)
    plan.make(
        query_start_loc=batch.query_start_loc, seq_lens=batch.seq_lens, rows=batch.rows, block_table=batch.block_table,
        block_size=batch.pool.block_size, window=layer.window, chained=False,
    )  # fmt: skip
    torch.cuda.synchronize()  # in a model, other kernels run between the plan and its first reader
    for _ in range(2):  # the second run proves that the first left the counters at zero
        kernel.run(q, out, layer, batch.pool, plan, partials, block_table=batch.block_table, transform=transform)
    assert not partials.done.any()
    return out, plan


def check(batch: PagedBatch, **how: bool | int) -> SharedPlan:
    fused = bool(how["fused"])
    q, expected_k, expected_v = transformed_heads(batch)
    out, plan = run(batch, **how)  # type: ignore[arg-type]
    tolerance = TOLERANCE[batch.qkv.dtype]
    if fused:
        for s, num_new in enumerate(batch.query_lens):
            start = int(batch.query_start_loc[s])
            assert num_new == 1
            check_written(batch, s, expected_k[start], expected_v[start])
    decodes = torch.cat([
        torch.full((n,), n <= int(how.get("threshold", 1)), device=DEVICE) for n in batch.query_lens
    ])  # fmt: skip
    attended = batch.attend(q if fused else batch.split_qkv()[0])
    assert relative_error(out[decodes], attended[decodes]) < tolerance
    assert out[~decodes].isnan().all(), "sequences with more new tokens are left alone"
    assert batch.is_null_block_as_it_was, "nobody writes the null block"
    return plan


DECODES = [(530, 1), (15, 1), (16, 1), (0, 1), (63, 1), (64, 1), (200, 1), (1999, 1)]


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("fused", [True, False])
def test_private(dim: int, fused: bool, copies: bool) -> None:
    norm = {"has_norm": True, "rotary_dim": dim} if fused else {}
    batch = make_batch(DECODES, head_dim=dim, **norm)  # type: ignore[arg-type]
    check(batch, fused=fused, shares=False, copies=copies)


@pytest.mark.parametrize("codes", ["fp8", "int8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dim", "fused"), [(64, True), (128, True), (96, False), (256, False)])
def test_codes_of_8_bits(dim: int, fused: bool, dtype: torch.dtype, codes: KVDType) -> None:
    """Ragged sequences, and 40 most of which share 1024 tokens: some of the units have 64 rows."""
    norm = {"has_norm": True, "rotary_dim": dim} if fused else {}
    seqs = [(1024 + 3 * i, 1) for i in range(40)] + DECODES
    batch = make_batch(seqs, num_heads=16, num_kv_heads=4, head_dim=dim, dtype=dtype, codes=codes, **norm)  # type: ignore[arg-type]
    blocks = 1024 // batch.pool.block_size
    batch.block_table[batch.rows[1:37].long(), :blocks] = batch.block_table[batch.rows[0].long(), :blocks]
    plan = check(batch, fused=fused, shares=True)
    assert plan.units[: int(plan.totals[0]), 10].any(), "nothing was shared"
    check(make_batch(DECODES, window=40, softcap=2.0, head_dim=dim, dtype=dtype, codes=codes), fused=True, shares=True)


@pytest.mark.parametrize("codes", [None, "fp8"])
@pytest.mark.parametrize("has_norm", [False, True])
def test_scales_that_the_projection_left(has_norm: bool, codes: KVDType | None) -> None:
    """Powers of two, with which nothing is rounded otherwise."""
    batch = make_batch(DECODES, num_heads=8, head_dim=128, rotary_dim=64, has_norm=has_norm, codes=codes)
    expected, _ = run(batch, fused=True, shares=False)
    written = batch.raw_pool.view(torch.uint8).clone()  # what nobody wrote may be NaN
    rows, columns = (
        torch.randint(-3, 4, (count,), device=DEVICE).float().exp2() for count in (len(batch.qkv), batch.qkv.shape[1])
    )
    batch.qkv.div_(rows[:, None] * columns)
    out, _ = run(batch, fused=True, shares=False, scales=(rows, columns))
    assert torch.equal(out, expected)
    assert torch.equal(batch.raw_pool.view(torch.uint8), written)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_that_are_subnormal_numbers(dtype: torch.dtype) -> None:
    batch = make_batch(DECODES, num_heads=8, head_dim=128, dtype=dtype, codes="fp8")
    batch.raw_pool[batch.pool.block_stride :] &= 0x87
    check(batch, fused=False, shares=False)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (32, 8), (16, 1), (40, 1), (12, 4)])
def test_groups(heads: int, kv_heads: int) -> None:
    batch = make_batch(DECODES, num_heads=heads, num_kv_heads=kv_heads, dtype=torch.float16, rotary_dim=32)
    check(batch, fused=True, shares=True)


def test_window_and_softcap() -> None:
    check(make_batch(DECODES, window=40, softcap=2.0, head_dim=128, rotary_dim=64), fused=True, shares=True)


@pytest.mark.parametrize("codes", [None, "fp8", "int8"])
@pytest.mark.parametrize("window", [None, 128])
def test_sinks(window: int | None, codes: KVDType | None) -> None:
    """gpt-oss's heads: whole contexts, those that several thread blocks share, and several new tokens."""
    kind = {"num_heads": 64, "num_kv_heads": 8, "head_dim": 64, "window": window, "codes": codes, "has_sinks": True}
    check(make_batch(DECODES, rotary_dim=64, **kind), fused=True, shares=True)  # type: ignore[arg-type]
    seqs = [(530, 16), (15, 1), (0, 16), (2000, 16)]
    check(make_batch(seqs, **kind), fused=False, shares=False, threshold=16)  # type: ignore[arg-type]


@pytest.mark.parametrize("queries", [2, 4, 16])
@pytest.mark.parametrize(("heads", "shares"), [(4, True), (16, True), (4, False), (16, False), (64, False)])
def test_verify_chunks(queries: int, heads: int, shares: bool) -> None:
    seqs = [(530, queries), (15, 1), (0, queries), (300, queries - 1), (17, 33), (1000, queries)]
    batch = make_batch(seqs, num_heads=heads, head_dim=128)
    check(batch, fused=False, shares=shares, threshold=queries)


@pytest.mark.parametrize("codes", [None, "fp8", "int8"])
@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_verify_chunks_of_every_kind(dim: int, window: int | None, codes: KVDType | None) -> None:
    seqs = [(530, 16), (15, 1), (0, 16), (300, 7), (63, 2), (2000, 16), (48, 16), (1, 9)]
    batch = make_batch(seqs, num_heads=8, head_dim=dim, window=window, softcap=window and 2.0, codes=codes)
    check(batch, fused=False, shares=False, threshold=16)


@pytest.mark.parametrize("seed", range(20))
def test_random_verify_chunks(seed: int) -> None:
    """From few long sequences, which are cut, to many, which are not; some are padding."""
    rng = np.random.default_rng(seed)
    num, longest = int(rng.choice([1, 3, 40, 200])), int(rng.choice([40, 600, 3000]))
    seqs = [(int(rng.integers(0, longest)), int(rng.integers(1, 17))) for _ in range(num)]
    heads, kv_heads = [(8, 1), (8, 2), (32, 8), (16, 8)][seed % 4]
    batch = make_batch(seqs, num_heads=heads, num_kv_heads=kv_heads, head_dim=64, seed=seed)
    batch.query_lens = [*batch.query_lens, 0]
    batch.query_start_loc = torch.cat([batch.query_start_loc, batch.query_start_loc[-1:]])
    batch.seq_lens, batch.rows = (torch.cat([one, one.new_zeros(1)]) for one in (batch.seq_lens, batch.rows))
    check(batch, fused=False, shares=False, threshold=16)


@pytest.mark.parametrize("seed", range(60))
def test_shared(seed: int) -> None:
    """Random trees of shared blocks."""
    rng = np.random.default_rng(seed)
    num = int(rng.integers(2, 70))
    longest = int(rng.choice([40, 600, 3000]))
    seqs = [(int(rng.integers(0, longest)), 1) for _ in range(num)]
    heads, kv_heads = [(4, 4), (4, 2), (8, 2), (8, 1)][seed % 4]
    dim, size = [64, 128][seed // 4 % 2], [16, 32, 64][seed % 3]
    batch = make_batch(
        seqs, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, block_size=size, rotary_dim=dim, seed=seed,
        dtype=[torch.bfloat16, torch.float16][seed % 2],
    )  # fmt: skip
    share(batch, seed)
    plan = check(batch, fused=seed % 5 > 0, shares=True)
    if longest == 3000 and num > 10:
        assert plan.units[: int(plan.totals[0]), 10].sum() > 0, "nothing was shared"


@pytest.mark.parametrize("num", [200, 1000])
def test_many(num: int) -> None:
    seqs = [(1024 + i % 64, 1) for i in range(num)]
    batch = make_batch(seqs, num_heads=8, num_kv_heads=2, head_dim=64)
    size = batch.pool.block_size
    for row in range(num):
        group = row // 40 * 40
        shared = 1024 // size if row % 40 > 3 else 512 // size
        batch.block_table[batch.rows[row], :shared] = batch.block_table[batch.rows[group], :shared]
    plan = check(batch, fused=True, shares=True)
    assert plan.units[: int(plan.totals[0]), 10].sum() > num // 40


def test_fixed_parts_do_not_depend_on_neighbours() -> None:
    """Bitwise: a sequence alone, and among others."""
    batch = make_batch([(3000, 1), *DECODES, (2500, 1)], head_dim=128)
    together, _ = run(batch, fused=False, shares=False, fixed_part=256)
    for s in range(len(batch.query_lens)):
        alone = make_batch([(3000, 1), *DECODES, (2500, 1)], head_dim=128)
        alone.query_lens = [1]
        alone.qkv, alone.seq_lens, alone.rows = alone.qkv[s : s + 1], alone.seq_lens[s : s + 1], alone.rows[s : s + 1]
        alone.query_start_loc = alone.query_start_loc[:2]
        out, _ = run(alone, fused=False, shares=False, fixed_part=256)
        assert torch.equal(out[0], together[s])
