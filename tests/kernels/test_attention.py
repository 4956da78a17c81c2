"""Paged attention: the cpu backend against the reference, and against itself with other chunks and batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from octavo.kernels.arrays import FloatArray
from octavo.kernels.attention_layer import AttentionLayer, KVScales, RotaryTable
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.device import Device
from octavo.kernels.kv_layout import KVDType, KVGroup
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear
from octavo.kernels.reference.device import ReferenceDevice
from octavo.testing.made_parameters import parameter
from octavo.testing.op_harness import MAX_SEQS, NUM_ROWS, Harness, Pool, random_table


@dataclass(frozen=True)
class Case:
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int = 16
    dtype: KVDType = "float32"
    window: int | None = None
    softcap: float | None = None
    scales: KVScales | None = None
    is_causal: bool = True
    has_sinks: bool = False

    def layer(self) -> AttentionLayer:
        angles = np.outer(np.arange(768), 0.7 ** np.arange(self.head_dim // 2)).astype(np.float32)
        rotary = RotaryTable(np.cos(angles), np.sin(angles)) if self.head_dim % 2 == 0 else None
        return AttentionLayer(
            *(0, 0, self.heads, self.kv_heads, self.head_dim, 1.5 * self.head_dim**-0.5),
            window=self.window,
            softcap=self.softcap,
            rotary=rotary,
            scales=self.scales,
            is_causal=self.is_causal,
            sinks=parameter(np.linspace(-3, 4, self.heads, dtype=np.float32)) if self.has_sinks else None,
        )

    def function(self) -> Callable[[Ops], Tensor]:
        table = random_table((self.heads + 2 * self.kv_heads) * self.head_dim)
        layer = self.layer()
        return lambda ops: ops.paged_attention(ops.rotary_kv_write(ops.embedding(table, "input_ids"), layer), layer)

    def harness(self, backend: Device) -> Harness:
        pool = Pool(block_size=self.block_size, num_kv_heads=self.kv_heads, head_dim=self.head_dim, dtype=self.dtype)
        window = self.window if self.is_causal else None
        return Harness(backend, self.function(), self.heads * self.head_dim, pool, window)


def scales(kv_heads: int, largest_code: float) -> KVScales:
    """Of normal numbers, another for each head."""
    each = np.linspace(3.5, 4.5, kv_heads, dtype=np.float32) / np.float32(largest_code)
    return KVScales(each, each[::-1] * np.float32(1.25))


CASES = {
    "mha": Case(4, 4, 32),
    "gqa2-block8": Case(4, 2, 64, block_size=8),
    "smollm2": Case(9, 3, 64),
    "gqa4-block32": Case(8, 2, 128, block_size=32),
    "gqa8": Case(8, 1, 96),
    "gqa5": Case(5, 1, 16),
    "gqa7-block64": Case(14, 2, 64, block_size=64),
    "gemma-block128": Case(4, 1, 256, block_size=128, window=40),
    "many-heads-one-kv": Case(71, 1, 8),
    "window-block8": Case(6, 2, 40, block_size=8, window=13),
    "window-1": Case(2, 1, 32, window=1),
    "window-past-partition": Case(3, 1, 64, window=150),
    "softcap": Case(4, 2, 64, softcap=3.0),
    "window-softcap-bf16": Case(4, 2, 72, dtype="bfloat16", window=33, softcap=5.0),
    "bf16": Case(9, 3, 64, dtype="bfloat16"),
    "f16-block8": Case(6, 2, 48, block_size=8, dtype="float16"),
    "f16-block128": Case(6, 3, 80, block_size=128, dtype="float16"),
    "odd-dim": Case(6, 2, 7),
    "sinks": Case(8, 2, 64, has_sinks=True),
    "sinks-window-bf16": Case(6, 2, 40, dtype="bfloat16", window=13, has_sinks=True),
    "mha-dim-8": Case(2, 2, 8),  # a single row of a single vector: compilers treat such a loop otherwise
    "dim-12-bf16": Case(4, 2, 12, dtype="bfloat16", window=20),
    "fp8": Case(9, 3, 64, dtype="fp8", scales=scales(3, 448)),
    "fp8-unscaled-block8": Case(4, 2, 24, block_size=8, dtype="fp8", window=33, softcap=5.0),
    "fp8-odd-dim": Case(6, 2, 7, dtype="fp8", scales=scales(2, 224)),
    "int8": Case(9, 3, 64, dtype="int8", scales=scales(3, 127)),
    "int8-block128": Case(4, 1, 96, block_size=128, dtype="int8", window=150, scales=scales(1, 127)),
    "int8-dim-12": Case(4, 2, 12, dtype="int8", softcap=3.0, scales=scales(2, 127)),
}

#: A key that the two rotate to neighbouring float32 values may round to neighbouring 16-bit ones.
TOLERANCE: dict[KVDType, float] = {"float32": 2e-5, "bfloat16": 2e-3, "float16": 3e-4, "fp8": 2e-2, "int8": 5e-3}


def tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, NUM_ROWS, count).tolist()


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference_on_ragged_steps(name: str) -> None:
    case = CASES[name]
    size = case.block_size
    steps = [
        [(0, size - 1), (1, size), (2, size + 1), (3, 1), (4, 131)],  # first chunks, around a block's end
        [(4, 1), (0, 1), (5, 2 * size), (2, 1), (1, 3)],  # decodes among chunks, in another order
        [(3, 150), (4, 1), (0, 1), (1, 1), (5, 1)],
        [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1)],
    ]
    cpu, reference = case.harness(CpuDevice(2)), case.harness(ReferenceDevice())
    for index, lens in enumerate(steps):
        work = [(row, tokens(10 * index + row, count)) for row, count in lens]
        for ours, theirs in zip(cpu.step(work), reference.step(work), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=TOLERANCE[case.dtype])


@pytest.mark.parametrize("window", [None, 1, 20, 150])
@pytest.mark.parametrize("name", ["mha", "gqa2-block8", "odd-dim", "softcap"])
def test_tokens_that_see_what_follows_agree_with_the_reference(name: str, window: int | None) -> None:
    """An encoder's step has whole texts. Their blocks are used again in the next step, for other texts."""
    case = replace(CASES[name], is_causal=False, window=window)
    results = []
    for lens in ([(0, 1), (1, 17), (2, 128), (3, 300), (4, 131)], [(3, 40), (0, 260)]):
        work = [(row, tokens(row, count)) for row, count in lens]
        for num_threads in (1, 3):
            cpu, reference = case.harness(CpuDevice(num_threads)), case.harness(ReferenceDevice())
            for ours, theirs in zip(cpu.step(work), reference.step(work), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=TOLERANCE[case.dtype])
        results.append(cpu.step([(7, tokens(3, 40))])[0])
    assert np.array_equal(*results), "a text's result depends on its company"


def test_the_reference_of_an_encoder_is_a_plain_softmax() -> None:
    case = Case(2, 2, 8, is_causal=False, window=3)
    layer, table = replace(case.layer(), rotary=None), random_table(6 * 8)
    function = lambda ops: ops.paged_attention(ops.rotary_kv_write(ops.embedding(table, "input_ids"), layer), layer)  # noqa: E731
    harness = Harness(ReferenceDevice(), function, 16, Pool(num_kv_heads=2, head_dim=8))
    ids = tokens(0, 9)
    qkv = table.dense().row_data.view(np.float32).reshape(NUM_ROWS, 6, 8)[ids]
    scores = np.einsum("thd,shd->hts", qkv[:, :2], qkv[:, 2:4]) * layer.scale
    far = np.abs(np.subtract.outer(np.arange(9), np.arange(9))) >= 3
    weights = np.exp(np.where(far, -np.inf, scores))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("hts,shd->thd", weights, qkv[:, 4:]).reshape(9, 16)
    np.testing.assert_allclose(harness.step([(0, ids)])[0], expected, rtol=1e-4, atol=1e-5)


def run_in_chunks(case: Case, lens: list[int], seed: int, max_chunk: int, num_threads: int) -> list[FloatArray]:
    """Each row's outputs, with its tokens in random chunks and the rows mixed at random."""
    rng = np.random.default_rng(seed)
    harness = case.harness(CpuDevice(num_threads))
    todo = [tokens(row, count) for row, count in enumerate(lens)]
    out: list[list[FloatArray]] = [[] for _ in lens]
    while any(todo):
        rows = [int(row) for row in rng.permutation(len(lens)) if todo[row] and rng.random() < 0.7]
        work = []
        for row in rows:
            count = int(rng.integers(1, max_chunk + 1))
            work.append((row, todo[row][:count]))
            todo[row] = todo[row][count:]
        if work:
            for row, part in zip(rows, harness.step(work), strict=True):
                out[row].append(part)
    return [np.concatenate(parts) for parts in out]


@pytest.mark.parametrize(
    "name",
    [
        *("smollm2", "window-past-partition", "gqa5", "gqa4-block32", "f16-block8", "bf16", "odd-dim", "mha-dim-8"),
        *("fp8", "fp8-odd-dim", "int8-block128", "int8-dim-12"),
    ],
)
def test_a_token_gets_the_same_bits_however_it_was_batched(name: str) -> None:
    case = CASES[name]
    lens = [300, 1, 17, 129, 64]
    whole = run_in_chunks(case, lens, seed=0, max_chunk=300, num_threads=1)
    for seed, max_chunk, num_threads in ((1, 300, 3), (2, 40, 2), (3, 5, 1), (4, 9, 4)):
        other = run_in_chunks(case, lens, seed, max_chunk, num_threads)
        for row, (ours, theirs) in enumerate(zip(whole, other, strict=True)):
            assert np.array_equal(ours, theirs), f"row {row} differs when cut by {max_chunk}, {num_threads} threads"


def test_a_long_context_split_among_threads_gives_the_same_bits() -> None:
    case = CASES["smollm2"]
    results = []
    for num_threads in (1, 2, 5):
        harness = case.harness(CpuDevice(num_threads))
        harness.step([(0, tokens(0, 700))])
        results.append(harness.step([(0, tokens(1, 1)), (1, tokens(2, 2))])[0])
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cache_groups_may_differ_in_heads_and_their_size(dtype: KVDType) -> None:
    """Two layers of 2 heads of 32, and one of 3 heads of 72, whose rows do not divide theirs, in one pool."""
    small, large = Case(4, 2, 32, dtype=dtype), Case(6, 3, 72, dtype=dtype)
    layers = [small.layer(), replace(small.layer(), index_in_group=1), replace(large.layer(), group=1)]
    tables = [random_table((layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim) for layer in layers]
    weights = [Linear((random_table(layer.num_heads * layer.head_dim),)) for layer in layers]

    def function(ops: Ops) -> Tensor:
        total = None
        for layer, table, weight in zip(layers, tables, weights, strict=True):
            qkv = ops.rotary_kv_write(ops.embedding(table, "input_ids"), layer)
            attended = ops.linear(ops.paged_attention(qkv, layer), weight)
            total = attended if total is None else ops.add(total, attended)
        return total

    pool = Pool(num_layers=2, num_kv_heads=2, head_dim=32, dtype=dtype, beside=(KVGroup(1, 3, 72),))
    cpu, reference = (Harness(device, function, NUM_ROWS, pool) for device in (CpuDevice(2), ReferenceDevice()))
    for index, lens in enumerate([[(0, 40), (1, 17)], [(1, 1), (0, 3)], [(0, 1), (1, 1)]]):
        work = [(row, tokens(10 * index + row, count)) for row, count in lens]
        for ours, theirs in zip(cpu.step(work), reference.step(work), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=50 * TOLERANCE[dtype])


def test_a_nan_stays_in_its_own_sequence() -> None:
    case = Case(4, 2, 32)
    table = random_table(8 * 32)
    table.dense().row_data.view(np.float32)[3] = np.nan
    layer = case.layer()
    harness = Harness(
        CpuDevice(2),
        lambda ops: ops.paged_attention(ops.rotary_kv_write(ops.embedding(table, "input_ids"), layer), layer),
        4 * 32,
        Pool(num_kv_heads=2, head_dim=32),
    )
    clean, poisoned = harness.step([(0, [1, 2, 4]), (1, [1, 3, 4])])
    assert np.isfinite(clean).all()
    assert np.isnan(poisoned[1:]).all()


def test_copied_blocks_hold_the_same_keys_and_values() -> None:
    case = Case(4, 2, 32, dtype="float16")
    harness = case.harness(CpuDevice(2))
    harness.step([(0, tokens(0, 20))])
    harness.fork(0, MAX_SEQS - 1)
    ours, copy = harness.step([(0, [5]), (MAX_SEQS - 1, [5])])
    assert np.array_equal(ours, copy)


def test_a_token_without_a_block_is_an_error_not_a_wild_write() -> None:
    harness = CASES["mha"].harness(CpuDevice(1))
    harness._blocks[2] = 0
    with pytest.raises(AssertionError, match="position 0 of row 2 is to be written to block 0 of 1"):
        harness.step([(2, [1, 2, 3])])
