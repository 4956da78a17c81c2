"""Latent attention on the host's backends against keys and values of each head, made as the papers define them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from octavo.kernels.arrays import FloatArray
from octavo.kernels.attention_layer import AttentionLayer, KVScales, RotaryTable
from octavo.kernels.device import Device, StepBatch
from octavo.kernels.kv_layout import KVDType, calibrated_code
from octavo.kernels.latent import Latent
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Parameter
from octavo.testing.made_parameters import parameter
from octavo.testing.op_harness import Harness, Pool, random_table

EPS = 1e-6
#: heads, R, N, V, P: of vectors of 16, of 8, and of none; more heads than a tile of the cpu backend has rows
SHAPES = [(6, 32, 12, 10, 16), (50, 24, 4, 6, 8), (3, 10, 5, 7, 4)]


def layer_of(shape: tuple[int, ...], *, interleaves: bool, scales: KVScales | None = None) -> AttentionLayer:
    heads, rank, key_dim, value_dim, rotary_dim = shape
    rng = np.random.default_rng(heads)
    up = parameter(rng.standard_normal((heads * (key_dim + value_dim), rank)).astype(np.float32))
    angles = np.outer(np.arange(256), 50.0 ** -(np.arange(rotary_dim // 2) / rotary_dim)).astype(np.float32)
    return AttentionLayer(
        *(0, 0, heads, 1, rank + rotary_dim, 0.2),
        k_norm=parameter(rng.uniform(0.5, 1.5, rank).astype(np.float32)),
        norm_eps=EPS,
        rotary=RotaryTable(np.cos(angles), np.sin(angles)),
        scales=scales,
        latent=Latent(rank, key_dim, value_dim, up, interleaves),
    )


def rotated(x: FloatArray, layer: AttentionLayer) -> FloatArray:
    """x [T, ..., P] at positions from 0."""
    assert layer.rotary is not None
    assert layer.latent is not None
    shape = (len(x), *([1] * (x.ndim - 2)), -1)
    cos, sin = (table[: len(x)].reshape(shape) for table in (layer.rotary.cos, layer.rotary.sin))
    half = x.shape[-1] // 2
    pairs = (slice(0, None, 2), slice(1, None, 2)) if layer.latent.interleaves else (slice(half), slice(half, None))
    a, b = (x[..., each] for each in pairs)
    out = np.empty_like(x)
    out[..., pairs[0]], out[..., pairs[1]] = a * cos - b * sin, b * cos + a * sin
    return out


def expected(q: FloatArray, kv: FloatArray, layer: AttentionLayer) -> FloatArray:
    """Of one sequence, in float64, with a key and a value of each head."""
    latent = layer.latent
    assert latent is not None
    c, turned = written(kv.astype(np.float64), layer)
    q = q.astype(np.float64)
    up = numbers(latent.up).reshape(layer.num_heads, -1, latent.rank)
    keys = np.einsum("tr,hnr->thn", c, up[:, : latent.key_dim])
    values = np.einsum("tr,hvr->thv", c, up[:, latent.key_dim :])
    shared = np.repeat(turned[:, None], layer.num_heads, axis=1)
    keys = np.concatenate([keys, shared], axis=-1)
    heads = q.reshape(len(q), layer.num_heads, -1)
    queries = np.concatenate([heads[..., : latent.key_dim], rotated(heads[..., latent.key_dim :], layer)], axis=-1)
    scores = np.einsum("thd,shd->hts", queries, keys) * layer.scale
    scores[:, np.triu(np.ones((len(q), len(q)), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shv->thv", weights / weights.sum(-1, keepdims=True), values).reshape(len(q), -1)


def written(kv: FloatArray, layer: AttentionLayer) -> tuple[FloatArray, FloatArray]:
    """Latents and keys as the cache gets them, of tokens at positions from 0."""
    assert layer.latent is not None
    assert layer.k_norm is not None
    c = kv[:, : layer.latent.rank]
    normed = c / np.sqrt((c**2).mean(-1, keepdims=True) + EPS) * numbers(layer.k_norm)
    return normed, rotated(kv[:, None, layer.latent.rank :], layer)[:, 0]


def one_step(tokens: list[int]) -> StepBatch:
    count, ids = len(tokens), np.array(tokens, np.int32)
    table = np.arange(1, 17, dtype=np.int32)[None]
    loc, lens = np.array([0, count], np.int32), np.array([count], np.int32)
    return StepBatch(ids, np.arange(count, dtype=np.int32), loc, lens, np.zeros(1, np.int32), (table,))


def numbers(table: Parameter) -> FloatArray:
    return table.dense().data.view(np.float32).reshape(table.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interleaves", [True, False])
def test_absorbed_is_as_expanded(shape: tuple[int, ...], interleaves: bool, backend: Device) -> None:
    """Two sequences in chunks, in blocks of all sizes; a third is forked from the first."""
    layer = layer_of(shape, interleaves=interleaves)
    heads, rank, key_dim, value_dim, rotary_dim = shape
    tables = random_table(heads * (key_dim + rotary_dim)), random_table(rank + rotary_dim, seed=3)

    def attend(ops: Ops) -> Tensor:
        q, kv = (ops.embedding(table, "input_ids") for table in tables)
        return ops.latent_values(ops.paged_attention(ops.latent_kv_write(q, kv, layer), layer), layer)

    block_size = {6: 8, 50: 16, 3: 32}[heads]
    pool = Pool(block_size=block_size, head_dim=layer.head_dim, is_latent=True, max_len=256)
    harness = Harness(backend, attend, heads * value_dim, pool)
    tokens = {0: [(5 * i) % 97 for i in range(150)], 1: [(3 * i + 1) % 97 for i in range(20)]}
    got = {row: [] for row in tokens}
    for cut in ({0: 140}, {0: 1, 1: 7}, {0: 9, 1: 13}):
        work = [(row, tokens[row][sum(map(len, got[row])) :][:count]) for row, count in cut.items()]
        for (row, _), result in zip(work, harness.step(work), strict=True):
            got[row].append(result)
    harness.fork(0, 2)
    (forked,) = harness.step([(2, [11])])
    tokens[0].append(11)
    got[0].append(forked)
    for row, ids in tokens.items():
        q, kv = (numbers(table)[ids] for table in tables)
        np.testing.assert_allclose(np.concatenate(got[row]), expected(q, kv, layer), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("dtype", "bound"), [("fp8", 0.06), ("int8", 0.02)])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_latents_and_keys_have_codes_by_scales_of_their_own(
    shape: tuple[int, ...], dtype: KVDType, bound: float, backend: Device
) -> None:
    """Keys are 20 times as large as latents. Scales that a step calibrates do as the same scales, given."""
    heads, rank, key_dim, value_dim, rotary_dim = shape
    q, kv = (
        random_table(width, seed=seed) for width, seed in ((heads * (key_dim + rotary_dim), 2), (rank + rotary_dim, 3))
    )
    rows = numbers(kv) * np.repeat(np.float32([1, 20]), [rank, rotary_dim])
    tables, tokens = (parameter(numbers(q) / 20), parameter(rows)), [(5 * i) % 97 for i in range(140)]
    plain = layer_of(shape, interleaves=True)
    largest = [np.abs(each).max() / calibrated_code(dtype) for each in written(rows[tokens[:64]], plain)]
    scales = KVScales(*(np.float32([each]) for each in largest[::-1]))
    results = []
    for given in (None, scales):
        layer = layer_of(shape, interleaves=True, scales=given)

        def attend(ops: Ops, layer: AttentionLayer = layer) -> Tensor:
            q, kv = (ops.embedding(table, "input_ids") for table in tables)
            return ops.latent_values(ops.paged_attention(ops.latent_kv_write(q, kv, layer), layer), layer)

        pool = Pool(head_dim=layer.head_dim, is_latent=True, dtype=dtype, max_len=256)
        harness = Harness(backend, attend, heads * value_dim, pool)
        if given is None:
            harness.compiled.calibrate(one_step(tokens[:64]))
        results.append(np.concatenate([harness.step([(0, part)])[0] for part in (tokens[:130], tokens[130:])]))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-5)
    exact = expected(numbers(tables[0])[tokens], rows[tokens], plain)
    assert np.linalg.norm(results[0] - exact) < bound * np.linalg.norm(exact)
