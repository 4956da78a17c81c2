"""Paged attention against float32 softmax over the same cache, for ragged mixes of chunks and decodes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from octavo.kernels.reference.dequantize import values
from tests.gpu.device import DEVICE, ON_GPU, TOLERANCE, needs_gpu, relative_error

from octavo.kernels.cuda.driver import GPU  # isort: skip
from octavo.kernels.cuda.step import DeviceStep, StepKind  # isort: skip
from octavo.kernels.device import StepLimits  # isort: skip
from octavo.kernels.kv_layout import LARGEST_CODE, KVDType, KVGroup  # isort: skip
from octavo.kernels.arrays import FloatArray  # isort: skip
from octavo.kernels.triton.attention.triton_attention import HopperAttention  # isort: skip
from octavo.kernels.triton.attention.hopper_prefill import HopperPrefill  # isort: skip
from octavo.kernels.triton.attention.memory import AttentionMemory  # isort: skip
from octavo.kernels.triton.attention.plan import AttentionPlan, make_plan, target_partition  # isort: skip
from octavo.kernels.cuda.weights import DeviceWeights  # isort: skip
from octavo.kernels.triton.attention.rotary_kv_write import HeadTransform, rotary_kv_write  # isort: skip
from octavo.kernels.triton.attention.triton_attention import TritonAttention  # isort: skip
from tests.gpu.paged_batch import PagedBatch, make_batch  # isort: skip

PROGRAMS = 100 if ON_GPU else 1
ON_HOPPER = ON_GPU and torch.cuda.get_device_capability()[0] == 9
needs_hopper = pytest.mark.skipif(not ON_HOPPER, reason="needs a Hopper GPU")


def run(
    batch: PagedBatch, *, fused: bool = False, chained: bool = False, hopper: bool = False, threshold: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the op's kernels: the queries after norm and rotation (empty if fused), and the output."""
    layer = batch.layer
    num_seqs, num_tokens = len(batch.query_lens), len(batch.positions)
    gpu = GPU("here", (9, 0) if chained else (8, 0), 1, PROGRAMS)
    memory = AttentionMemory([layer], batch.layout, StepLimits(num_tokens, num_seqs, 1 << 15, 1), gpu, DEVICE)
    memory.sinks = {} if layer.sinks is None else {layer: batch.pool.sinks}
    memory.bind(batch.raw_pool.view(torch.uint8))
    # with a long chunk in the step, the kernel for long chunks must take the short ones, too
    kind = replace(StepKind.of(batch.step(threshold)), has_long_chunks=True)
    tables = batch.block_tables(batch.block_table)
    step = DeviceStep(batch.positions, batch.positions, batch.query_start_loc, batch.seq_lens, batch.rows, tables, kind)
    triton = TritonAttention(memory)
    backend = HopperAttention(memory) if hopper else triton
    transform = HeadTransform.of(layer, DeviceWeights(DEVICE, torch.float32))
    q = torch.empty(num_tokens, layer.num_heads * layer.head_dim, device=DEVICE, dtype=batch.qkv.dtype)
    out = torch.full_like(q, torch.nan)
    triton.plan(step)
    if fused:
        backend.decode(layer, transform, triton.decode(layer, transform, nobody))(step, batch.qkv, out)
    else:
        slots = memory.plan_of(layer).slots
        rotary_kv_write(
            batch.qkv, q, layer, batch.pool, transform, slots=slots, positions=batch.positions, chained=chained
        )
        backend.decode(layer, None, triton.decode(layer, None, nobody))(step, q, out)
        backend.prefill(layer, triton.prefill(layer, nobody))(step, q, out)
    return q, out


def nobody(step: DeviceStep, q: torch.Tensor, out: torch.Tensor) -> None:
    raise AssertionError("plain kernels leave nothing to others")


def transformed_heads(batch: PagedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v after norm and rotation, in float32."""
    layer = batch.layer
    q, k, v = (x.float().clone() for x in batch.split_qkv())
    if layer.q_norm is not None and layer.k_norm is not None:
        q_norm, k_norm = (torch.as_tensor(values(norm)).to(q) for norm in (layer.q_norm, layer.k_norm))
        q = q * (q.square().mean(-1, keepdim=True) + layer.norm_eps).rsqrt() * q_norm
        k = k * (k.square().mean(-1, keepdim=True) + layer.norm_eps).rsqrt() * k_norm
    if layer.rotary is not None:
        half = layer.rotary.rotary_dim // 2
        cos = torch.as_tensor(layer.rotary.cos).to(q)[batch.positions][:, None]
        sin = torch.as_tensor(layer.rotary.sin).to(q)[batch.positions][:, None]
        for x in (q, k):
            a, b = x[..., :half].clone(), x[..., half : 2 * half].clone()
            x[..., :half], x[..., half : 2 * half] = a * cos - b * sin, b * cos + a * sin
    return q, k, v


def check(batch: PagedBatch, **how: int) -> None:
    expected_q, expected_k, expected_v = transformed_heads(batch)
    tolerance = TOLERANCE[batch.qkv.dtype]
    q, out = run(batch, **how)
    if not how.get("fused"):
        assert relative_error(q.view_as(expected_q), expected_q) < tolerance
    start = 0
    for s, num_new in enumerate(batch.query_lens):
        new = slice(start, start + num_new)
        check_written(batch, s, expected_k[new], expected_v[new])
        start += num_new
    attended = batch.attend(expected_q if how.get("fused") else q.view_as(expected_q))
    assert relative_error(out, attended) < tolerance
    assert batch.is_null_block_as_it_was, "nobody writes the null block"


def check_written(batch: PagedBatch, s: int, expected_k: torch.Tensor, expected_v: torch.Tensor) -> None:
    """Sequence s ends with these keys and values."""
    num_new = 1 if expected_k.ndim == 2 else len(expected_k)
    keys, values = batch.keys(s)[-num_new:].float(), batch.values(s)[-num_new:].float()
    tolerance, scales = TOLERANCE[batch.qkv.dtype], batch.layer.scales
    if scales is None:
        assert relative_error(keys, expected_k.view_as(keys)) < tolerance
        assert torch.equal(values, expected_v.view_as(values))
    else:
        check_codes(batch, keys, expected_k.view_as(keys), scales.keys, tolerance)
        check_codes(batch, values, expected_v.view_as(values), scales.values, 1e-6)


def check_codes(
    batch: PagedBatch, actual: torch.Tensor, exact: torch.Tensor, scales: FloatArray, tolerance: float
) -> None:
    """Each number is the nearest that its code and the head's scale can make, but for errors of the number itself."""
    unit = torch.from_numpy(scales).to(DEVICE)[:, None]
    step = unit if batch.layout.dtype == "int8" else (exact.abs() / 8).clamp(min=unit * 2.0**-9)
    largest = unit * LARGEST_CODE[batch.layout.dtype]
    missed = (actual - exact.clamp(-largest, largest)).abs()
    assert (missed <= 0.501 * step + tolerance * exact.abs().amax()).all()


SMALL_MIX = [(0, 5), (300, 1), (17, 3), (15, 1), (0, 1), (64, 1), (16, 33)]
DECODES = [(530, 1), (15, 1), (16, 1), (0, 1), (63, 1), (64, 1), (200, 1)]


def test_mixed_step() -> None:
    check(make_batch(SMALL_MIX, dtype=torch.float32, has_norm=True, rotary_dim=64))


def test_fused_decode() -> None:
    check(make_batch(DECODES, dtype=torch.float32, has_norm=True, rotary_dim=64), fused=True)


def test_window_and_softcap() -> None:
    check(make_batch(SMALL_MIX, dtype=torch.float32, window=40, softcap=2.0, rotary_dim=32))


def test_sinks() -> None:
    """Chunks, fused decodes in one item and several, and decodes of several new tokens."""
    options = {"dtype": torch.float32, "head_dim": 32, "rotary_dim": 32, "has_sinks": True}
    check(make_batch([(0, 5), (300, 1), (16, 33)], window=40, **options))
    check(make_batch([(530, 1), (15, 1), (0, 1)], **options), fused=True)
    check(make_batch([(300, 1), (15, 2), (63, 16)], **options), threshold=16)


def test_windowed_fused_decode() -> None:
    check(make_batch(DECODES, dtype=torch.float32, window=64, softcap=2.0, head_dim=32, rotary_dim=32), fused=True)


@pytest.mark.parametrize("beside", [KVGroup(2, 5, 64), KVGroup(5, 1, 32)])
def test_blocks_shared_with_a_group_of_other_heads(beside: KVGroup) -> None:
    """One group that takes more of a block than this layer's, with another head size, and one that takes less."""
    check(make_batch(SMALL_MIX, dtype=torch.float32, head_dim=96, rotary_dim=64, beside=(beside,)))
    check(make_batch(DECODES, dtype=torch.float32, head_dim=96, rotary_dim=64, beside=(beside,)), fused=True)


@pytest.mark.parametrize("codes", ["fp8", "int8"])
def test_codes_of_8_bits(codes: KVDType) -> None:
    """Chunks and decodes; a fused decode; decodes of several new tokens with a window and a cap."""
    options = {"dtype": torch.float32, "head_dim": 32, "rotary_dim": 32, "num_heads": 2, "codes": codes}
    check(make_batch([(0, 5), (70, 1), (16, 33)], has_norm=True, **options | {"num_kv_heads": 1}))
    check(make_batch([(150, 1), (15, 1), (0, 1), (64, 1)], **options), fused=True)
    check(make_batch(FEW_NEW[1:4], window=20, softcap=2.0, block_size=32, **options), threshold=16)


#: decodes of up to 16 new tokens, around a block's end, among chunks and sequences of several items
FEW_NEW = [(300, 1), (0, 16), (290, 3), (15, 2), (40, 17), (63, 16), (250, 5), (0, 1), (17, 40), (64, 13), (700, 9)]


ONE_KV_HEAD = {"num_heads": 2, "num_kv_heads": 1}  # half of the programs


@pytest.mark.parametrize("threshold", [2, 8, 16])
def test_decodes_of_several_new_tokens(threshold: int) -> None:
    heads = {} if threshold == 16 else ONE_KV_HEAD
    check(make_batch(FEW_NEW, dtype=torch.float32, has_norm=True, rotary_dim=64, **heads), threshold=threshold)


@pytest.mark.parametrize("window", [1, 20, 100])
def test_decodes_of_several_new_tokens_with_a_window_and_a_cap(window: int) -> None:
    heads = {} if window == 20 else ONE_KV_HEAD
    batch = make_batch(FEW_NEW, dtype=torch.float32, window=window, softcap=2.0, rotary_dim=32, block_size=32, **heads)
    check(batch, threshold=16)


@pytest.mark.parametrize("num_heads", [2, 24, 71])
def test_decodes_of_several_new_tokens_of_many_heads(num_heads: int) -> None:
    """24 heads x 16 tokens are more rows than a program takes at once; so are 71 heads x 2 tokens."""
    batch = make_batch(FEW_NEW[1:4], dtype=torch.float32, num_heads=num_heads, num_kv_heads=1, head_dim=32)
    check(batch, threshold=16)


@pytest.mark.parametrize("seed", range(4))
def test_random_decodes_of_several_new_tokens(seed: int) -> None:
    rng = random.Random(seed)
    seqs = [(rng.choice([0, 1, 47, 48, 255, 500]) + rng.randrange(3), rng.randrange(1, 17)) for _ in range(5)]
    check(make_batch(seqs, dtype=torch.float32, window=rng.choice([None, 70]), seed=seed), threshold=16)


def test_the_threshold_says_which_sequences_are_decodes() -> None:
    batch = make_batch([(0, 16), (5, 17), (600, 1), (30, 4)], dtype=torch.float32)
    for threshold, is_decode in ((1, [0, 0, 1, 0]), (4, [0, 0, 1, 1]), (16, [1, 0, 1, 1])):
        plan = AttentionPlan.allocate(4, len(batch.positions), DEVICE)
        make_plan(
            plan, positions=batch.positions, block_size=16, query_start_loc=batch.query_start_loc, rows=batch.rows,
            seq_lens=batch.seq_lens, block_table=batch.block_table, decode_threshold=threshold,
        )  # fmt: skip
        assert (plan.item_ranges[:, 1] > 0).tolist() == [bool(one) for one in is_decode]
        assert plan.totals[1] == 4 - sum(is_decode)
        kind = StepKind.of(batch.step(threshold))
        assert (kind.has_decodes, kind.has_chunks, kind.decode_threshold) == (True, True, threshold)


def test_partial_results_of_several_new_tokens_have_room() -> None:
    """With the most sequences, all long, each gets fewer parts, to fit the memory for one new token each."""
    batch = make_batch([(2000, 16)] * 3, dtype=torch.float32, num_heads=1, num_kv_heads=1, head_dim=16)
    plan = AttentionPlan.allocate(3, len(batch.positions), DEVICE)
    make_plan(
        plan, positions=batch.positions, block_size=16, query_start_loc=batch.query_start_loc, rows=batch.rows,
        seq_lens=batch.seq_lens, block_table=batch.block_table, decode_threshold=16,
    )  # fmt: skip
    assert plan.item_ranges[:, 1].tolist() == [2, 2, 2]
    check(batch, threshold=16)


def test_padding_writes_nothing() -> None:
    """Tokens without a sequence and empty sequences, as in a step padded to a captured size."""
    batch = make_batch([(3, 5), (30, 1)], dtype=torch.float32)
    pool_before, num_tokens = batch.raw_pool.clone(), len(batch.positions)

    def padded(values: torch.Tensor, size: int, fill: int) -> torch.Tensor:
        return torch.cat([values, values.new_full((size - len(values),), fill)])

    plan = AttentionPlan.allocate(4, num_tokens + 3, DEVICE)
    positions = padded(batch.positions, num_tokens + 3, 0)
    make_plan(
        plan, positions=positions, block_size=16, query_start_loc=padded(batch.query_start_loc, 5, num_tokens),
        seq_lens=padded(batch.seq_lens, 4, 0), rows=padded(batch.rows, 4, 0), block_table=batch.block_table,
    )  # fmt: skip
    assert plan.slots[num_tokens:].tolist() == [-1] * 3
    assert (plan.slots[:num_tokens] >= 16).all(), "not in the null block"
    assert plan.totals.tolist() == [1, 1]
    qkv = torch.full((3, batch.qkv.shape[1]), 7.0, device=DEVICE)
    q = torch.empty(3, batch.layer.num_heads * batch.layer.head_dim, device=DEVICE)
    rotary_kv_write(
        qkv, q, batch.layer, batch.pool, HeadTransform.of(batch.layer, DeviceWeights(DEVICE, torch.float32)),
        slots=plan.slots[num_tokens:], positions=positions[num_tokens:],
    )  # fmt: skip
    assert torch.equal(batch.raw_pool.nan_to_num(), pool_before.nan_to_num())


def test_a_row_of_padding_has_no_slot_of_an_earlier_step() -> None:
    """In a step of decodes an empty sequence has a token as well."""
    batch = make_batch([(30, 1), (3, 1)], dtype=torch.float32)
    plan = AttentionPlan.allocate(4, 4, DEVICE)
    plan.slots.fill_(17)
    empty = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    make_plan(
        plan, positions=torch.cat([batch.positions, empty]), block_size=16, rows=torch.cat([batch.rows, empty]),
        query_start_loc=torch.arange(5, dtype=torch.int32, device=DEVICE), block_table=batch.block_table,
        seq_lens=torch.cat([batch.seq_lens, empty]),
    )  # fmt: skip
    assert (plan.slots[:2] >= 16).all(), "not in the null block"
    assert plan.slots[2:].tolist() == [-1, -1]


BIG_MIX = [
    (0, 700),
    (3000, 1),
    (511, 1),
    (1024, 130),
    (0, 128),
    (77, 129),
    (20000, 1),
    (2047, 1),
    (2048, 1),
    (9000, 1),
    (5, 2),
]
BIG_DECODES = [(n, 1) for n in (0, 1, 15, 16, 63, 64, 127, 700, 2047, 2048, 4097, 9001, 30000)] * 3


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
def test_mixed_step_shapes(dtype: torch.dtype, head_dim: int, group: int) -> None:
    check(make_batch(BIG_MIX, num_heads=2 * group, head_dim=head_dim, dtype=dtype, has_norm=True, rotary_dim=head_dim))


@needs_hopper
@pytest.mark.parametrize("block_size", [16, 32, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [1, 2, 7])
def test_mixed_step_on_hopper(dtype: torch.dtype, head_dim: int, group: int, block_size: int) -> None:
    """Chunks after contexts of every remainder, mixed with decodes."""
    chunks = [*BIG_MIX, (1000, 64), (1, 2), (126, 3), (127, 130), (3000, 1500), (0, 2), (8192, 300)]
    check(
        make_batch(
            chunks, num_heads=2 * group, head_dim=head_dim, dtype=dtype, has_norm=True, rotary_dim=head_dim,
            block_size=block_size,
        ),
        hopper=True,
    )  # fmt: skip


@needs_hopper
@pytest.mark.parametrize("block_size", [16, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [1, 4])
def test_chunks_over_codes_on_hopper(dtype: torch.dtype, head_dim: int, group: int, block_size: int) -> None:
    chunks = [*BIG_MIX, (1000, 64), (1, 2), (126, 3), (127, 130), (3000, 1500), (0, 2), (8192, 300)]
    check(
        make_batch(
            chunks, num_heads=2 * group, head_dim=head_dim, dtype=dtype, rotary_dim=head_dim, block_size=block_size,
            codes="fp8",
        ),
        hopper=True,
    )  # fmt: skip


@needs_hopper
@pytest.mark.parametrize(("block_size", "window"), [(16, None), (32, None), (128, None), (16, 100)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [1, 2, 7, 16])
def test_fused_decode_on_hopper(
    dtype: torch.dtype, head_dim: int, group: int, block_size: int, window: int | None
) -> None:
    batch = make_batch(
        BIG_DECODES, num_heads=2 * group, head_dim=head_dim, dtype=dtype, has_norm=group != 7, rotary_dim=head_dim // 2,
        block_size=block_size, window=window,
    )  # fmt: skip
    check(batch, fused=True, hopper=True, chained=group == 2)


@needs_hopper
@pytest.mark.parametrize("window", [None, 128])
def test_sinks_on_hopper(window: int | None) -> None:
    kind = {"num_heads": 64, "num_kv_heads": 8, "head_dim": 64, "window": window, "has_sinks": True}
    check(make_batch([*BIG_MIX, (3000, 1500)], **kind), hopper=True)  # type: ignore[arg-type]
    check(make_batch(BIG_DECODES, rotary_dim=64, **kind), fused=True, hopper=True)  # type: ignore[arg-type]


@needs_hopper
def test_hopper_counts_its_work_anew_every_launch() -> None:
    """The counter is back at zero after a launch, whether programs outnumber the work or not."""
    for chunks in ([(0, 2)], [(0, 700)] * 20):
        batch = make_batch(chunks, num_heads=4, head_dim=128, dtype=torch.bfloat16)
        plan = AttentionPlan.allocate(len(chunks), len(batch.positions), DEVICE)
        make_plan(
            plan, positions=batch.positions, block_size=16, seq_lens=batch.seq_lens, rows=batch.rows,
            query_start_loc=batch.query_start_loc, block_table=batch.block_table,
        )  # fmt: skip
        q = torch.randn(len(batch.positions), 4 * 128, device=DEVICE, dtype=torch.bfloat16)
        attention, first = HopperPrefill(PROGRAMS, DEVICE), torch.empty_like(q)
        attention.prefill(q, first, batch.layer, batch.pool, plan, block_table=batch.block_table)
        for _ in range(3):
            again = torch.full_like(q, torch.nan)
            attention.prefill(q, again, batch.layer, batch.pool, plan, block_table=batch.block_table)
            assert torch.equal(first, again)


@needs_gpu
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_blocks_of_several_boxes(head_dim: int, block_size: int) -> None:
    def batch(seqs: list[tuple[int, int]]) -> PagedBatch:
        return make_batch(seqs, num_heads=8, head_dim=head_dim, dtype=torch.bfloat16, block_size=block_size)

    check(batch(BIG_DECODES), fused=True)
    check(batch(BIG_MIX))


@needs_gpu
@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
def test_fused_decode_shapes(dtype: torch.dtype, head_dim: int, group: int, chained: bool) -> None:
    batch = make_batch(
        BIG_DECODES, num_heads=2 * group, head_dim=head_dim, dtype=dtype, has_norm=True, rotary_dim=head_dim
    )
    check(batch, fused=True, chained=chained)


@needs_gpu
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("threshold", [2, 4, 8, 16])
def test_decodes_of_several_new_tokens_on_a_gpu(
    threshold: int, group: int, head_dim: int, dtype: torch.dtype, window: int | None
) -> None:
    seqs = [*FEW_NEW, (9000, 16), (20000, 4), (4097, 11), (2047, 2), (511, 600)]
    batch = make_batch(seqs, num_heads=2 * group, head_dim=head_dim, dtype=dtype, window=window, rotary_dim=head_dim)
    check(batch, threshold=threshold, chained=ON_HOPPER and group == 2, hopper=ON_HOPPER and group == 4)


@needs_gpu
@pytest.mark.parametrize("codes", ["fp8", "int8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_codes_on_a_gpu(head_dim: int, dtype: torch.dtype, codes: KVDType) -> None:
    options = {"num_heads": 8, "head_dim": head_dim, "dtype": dtype, "rotary_dim": head_dim, "codes": codes}
    check(make_batch(BIG_MIX, has_norm=True, **options), chained=ON_HOPPER)
    check(make_batch(BIG_DECODES, has_norm=True, **options), fused=True, chained=ON_HOPPER)
    check(make_batch(FEW_NEW, window=100, **options), threshold=16)


@needs_gpu
@pytest.mark.parametrize("window", [1, 100, 1024])
@pytest.mark.parametrize("block_size", [16, 32])
def test_windows(window: int, block_size: int) -> None:
    options = {"head_dim": 128, "block_size": block_size, "window": window, "rotary_dim": 128}
    check(make_batch(BIG_MIX, **options), chained=True)
    check(make_batch(BIG_DECODES, **options), fused=True)


@needs_gpu
@pytest.mark.parametrize("hopper", [False, pytest.param(True, marks=needs_hopper)])
@pytest.mark.parametrize(("many", "few"), [(32, 5), (4, 1)])
def test_a_sequence_is_the_same_in_every_batch_cut_alike(many: int, few: int, hopper: bool) -> None:
    assert target_partition(many) == target_partition(few), "so they are cut alike"
    batch = make_batch([(3000, 1), *BIG_DECODES[: many - 1]], head_dim=128)
    _, together = run(batch, hopper=hopper)
    batch.query_lens = [1] * few
    batch.seq_lens, batch.query_start_loc = batch.seq_lens[:few], batch.query_start_loc[: few + 1]
    batch.positions, batch.rows, batch.qkv = batch.positions[:few], batch.rows[:few], batch.qkv[:few]
    _, apart = run(batch, hopper=hopper)
    assert torch.equal(together[:few], apart)
