"""The reference backend against torch's and transformers' own layers, one op at a time.

The model under test is a single op, so that the step, the pool and the block tables are the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from subprocess import run
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from octavo.kernels.arrays import FloatArray
from octavo.kernels.attention_layer import AttentionLayer, RotaryTable
from octavo.kernels.device import StepBatch, StepLimits
from octavo.kernels.kv_layout import KVDType, KVGroup, KVLayout
from octavo.kernels.model import TOKEN_IDS, Head
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.reference.compiled import ReferenceModel
from octavo.kernels.reference.weights import ReferenceWeights
from octavo.testing.made_parameters import linear, parameter

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, NUM_BLOCKS = 6, 2, 8, 4, 40
LAYER = AttentionLayer(
    group=0, index_in_group=0, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, scale=HEAD_DIM**-0.5
)


@dataclass
class OneOp:
    """A model of one expression over ops."""

    expression: Callable[[Ops], Tensor]
    inputs = TOKEN_IDS

    @property
    def heads(self) -> dict[str, Head]:
        return {"logits": self.logits}

    def body(self, ops: Ops) -> tuple[Tensor]:
        return (self.expression(ops),)

    def logits(self, ops: Ops, hidden: Tensor) -> Tensor:
        return hidden


class Bench:
    """A pool of poisoned blocks, and sequences in shuffled ones. Token i of a step has input id i, so a table of the
    step's inputs can give it any activations."""

    def __init__(self, *, num_groups: int = 1, layers_per_group: int = 1, dtype: KVDType = "float32") -> None:
        self.layout = KVLayout(
            NUM_BLOCKS, BLOCK_SIZE, (KVGroup(layers_per_group, KV_HEADS, HEAD_DIM),) * num_groups, dtype
        )
        self.pool = np.full(NUM_BLOCKS * self.layout.block_bytes, 0xFF, np.uint8)
        order = np.random.default_rng(0).permutation(np.arange(1, NUM_BLOCKS)).astype(np.int32)
        self.tables = tuple(order[g * 12 : (g + 1) * 12].reshape(3, 4).copy() for g in range(num_groups))

    def compile(self, expression: Callable[[Ops], Tensor]) -> Any:
        return ReferenceModel(OneOp(expression), self.layout, self.pool, StepLimits(64, 8, 64, 16), ReferenceWeights())

    def step(self, spans: list[tuple[int, int, int]]) -> StepBatch:
        """spans: (row, first position, end position)."""
        positions = np.concatenate([np.arange(first, end) for _, first, end in spans]).astype(np.int32)
        return StepBatch(
            input_ids=np.arange(len(positions), dtype=np.int32),
            positions=positions,
            query_start_loc=np.cumsum([0, *(end - first for _, first, end in spans)], dtype=np.int32),
            seq_lens=np.array([end for *_, end in spans], np.int32),
            rows=np.array([row for row, *_ in spans], np.int32),
            block_tables=self.tables,
        )

    def run(self, expression: Callable[[Ops], Tensor], spans: list[tuple[int, int, int]]) -> FloatArray:
        compiled, batch = self.compile(expression), self.step(spans)
        compiled.forward(batch)
        result: FloatArray = compiled.logits(np.arange(len(batch.input_ids), dtype=np.int32))
        return result


def random(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def of(x: FloatArray, op: Callable[[Ops, Tensor], Tensor]) -> FloatArray:
    """The op applied to x [T, width]."""
    return Bench().run(lambda ops: op(ops, ops.embedding(parameter(x), "input_ids")), [(0, 0, len(x))])


def close(a: NDArray[Any], b: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(a, np.asarray(b), rtol=tolerance, atol=tolerance)


def test_embedding_offsets_and_scales() -> None:
    table = random(12, 5)
    result = Bench().run(lambda ops: ops.embedding(parameter(table), "positions", offset=2, scale=3.0), [(0, 4, 7)])
    close(result, table[6:9] * 3)


def test_linear_stacks_parts_of_different_types_and_adds_the_bias() -> None:
    x, a, b, bias = random(3, 8), random(4, 8, seed=1), random(2, 8, seed=2).astype(np.float16), random(6, seed=3)
    result = of(x, lambda ops, x: ops.linear(x, linear(a, b, bias=bias)))
    close(result, x @ np.concatenate([a, b.astype(np.float32)]).T + bias)


def test_norms() -> None:
    x, weight, bias = random(4, 16) * 5, random(16, seed=1), random(16, seed=2)
    t, w = torch.from_numpy(x), torch.from_numpy(weight)
    close(of(x, lambda ops, x: ops.rms_norm(x, parameter(weight), 1e-3)), F.rms_norm(t, (16,), w, 1e-3))
    close(
        of(x, lambda ops, x: ops.layer_norm(x, parameter(weight), parameter(bias), 1e-3)),
        F.layer_norm(t, (16,), w, torch.from_numpy(bias), 1e-3),
    )
    close(of(x, lambda ops, x: ops.layer_norm(x, parameter(weight), None, 1e-3)), F.layer_norm(t, (16,), w, None, 1e-3))
    close(of(x, lambda ops, x: ops.add_rms_norm(x, x, parameter(weight), 1e-3)[0]), F.rms_norm(2 * t, (16,), w, 1e-3))
    close(of(x, lambda ops, x: ops.add_rms_norm(x, x, parameter(weight), 1e-3)[1]), 2 * x)


def test_activations() -> None:
    x = random(3, 8) * 3
    t = torch.from_numpy(x)
    oracles = {
        "silu": t * torch.sigmoid(t),
        "gelu": t * 0.5 * (1 + torch.erf(t / 2**0.5)),
        "gelu_tanh": 0.5 * t * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (t + 0.044715 * t**3))),
        "relu": t.clamp(min=0),
    }
    for kind, oracle in oracles.items():
        close(of(x, lambda ops, x, kind=kind: ops.activation(x, kind)), oracle)
        close(of(x, lambda ops, x, kind=kind: ops.gated_activation(x, kind)), oracle[:, :4] * t[:, 4:])
    close(of(x, lambda ops, x: ops.softcap(x, 2.0)), 2 * torch.tanh(t / 2))
    close(of(x, lambda ops, x: ops.add(x, x)), 2 * x)


def attention_over(
    bench: Bench, layer: AttentionLayer, qkv: FloatArray, spans: list[tuple[int, int, int]]
) -> FloatArray:
    def expression(ops: Ops) -> Tensor:
        return ops.paged_attention(ops.rotary_kv_write(ops.embedding(parameter(qkv), "input_ids"), layer), layer)

    return bench.run(expression, spans)


def attention_oracle(qkv: FloatArray, layer: AttentionLayer) -> FloatArray:
    """One whole sequence by the definition: a loop over tokens and heads, in float64."""
    heads = qkv.astype(np.float64).reshape(len(qkv), -1, HEAD_DIM)
    q, k, v = np.split(heads, [HEADS, HEADS + KV_HEADS], axis=1)
    out = np.empty_like(q)
    for t in range(len(qkv)):
        first = 0 if layer.window is None else max(0, t - layer.window + 1)
        for h in range(HEADS):
            keys, values = (x[first : t + 1, h * KV_HEADS // HEADS] for x in (k, v))
            scores = keys @ q[t, h] * layer.scale
            if layer.softcap is not None:
                scores = layer.softcap * np.tanh(scores / layer.softcap)
            weights = np.exp(scores - scores.max())
            out[t, h] = weights @ values / weights.sum()
    return out.reshape(len(qkv), -1).astype(np.float32)


WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM
VARIANTS = [
    LAYER,
    replace(LAYER, window=1),
    replace(LAYER, window=5),
    replace(LAYER, window=100),
    replace(LAYER, softcap=0.7, scale=1.3),
]


@pytest.mark.parametrize("layer", VARIANTS, ids=["full", "window1", "window5", "window100", "softcap"])
def test_attention_of_a_ragged_step_and_its_continuation(layer: AttentionLayer) -> None:
    bench = Bench()
    whole = {row: random(14, WIDTH, seed=row) * 2 for row in range(3)}
    oracle = {row: attention_oracle(qkv, layer) for row, qkv in whole.items()}
    for spans in ([(2, 0, 9), (0, 0, 1)], [(0, 1, 6), (1, 0, 14), (2, 9, 10)], [(2, 10, 14), (0, 6, 14)]):
        qkv = np.concatenate([whole[row][first:end] for row, first, end in spans])
        expected = np.concatenate([oracle[row][first:end] for row, first, end in spans])
        close(attention_over(bench, layer, qkv, spans), expected)


def test_blocks_outside_the_window_are_never_read() -> None:
    layer, bench, qkv = replace(LAYER, window=5), Bench(), random(14, WIDTH)
    attention_over(bench, layer, qkv[:12], [(0, 0, 12)])
    bench.tables[0][0, :2] = 0  # position 12 sees 8 .. 12
    close(attention_over(bench, layer, qkv[12:], [(0, 12, 14)]), attention_oracle(qkv, layer)[12:])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 2e-2)])
def test_cache_types_round_keys_and_values_only(dtype: KVDType, tolerance: float) -> None:
    qkv = random(10, WIDTH)
    result = attention_over(Bench(dtype=dtype), LAYER, qkv, [(1, 0, 10)])
    rounded = torch.from_numpy(qkv).clone()
    kv = rounded[:, HEADS * HEAD_DIM :]
    kv.copy_(kv.to(getattr(torch, dtype)).float())
    close(result, attention_oracle(rounded.numpy(), LAYER), 1e-5)
    close(result, attention_oracle(qkv, LAYER), tolerance)


def test_groups_and_layers_keep_apart() -> None:
    bench = Bench(num_groups=2, layers_per_group=2)
    places = [replace(LAYER, group=group, index_in_group=index) for group in (0, 1) for index in (0, 1)]
    inputs = [random(7, WIDTH, seed=i) for i in range(len(places))]
    for layer, qkv in zip(places, inputs, strict=True):
        attention_over(bench, layer, qkv[:6], [(0, 0, 6)])
    for layer, qkv in zip(places, inputs, strict=True):
        close(attention_over(bench, layer, qkv[6:], [(0, 6, 7)]), attention_oracle(qkv, layer)[6:])


def test_queries_and_keys_are_normed_then_rotated_and_values_neither() -> None:
    angles = random(20, 3)
    rotary = RotaryTable(np.cos(angles) * np.float32(1.5), np.sin(angles) * np.float32(1.5))
    q_norm, k_norm = random(HEAD_DIM, seed=1), random(HEAD_DIM, seed=2)
    layer = replace(LAYER, rotary=rotary, q_norm=parameter(q_norm), k_norm=parameter(k_norm), norm_eps=1e-2)
    qkv = random(9, WIDTH, seed=3)

    def prepare(x: torch.Tensor, norm: FloatArray) -> torch.Tensor:
        x = F.rms_norm(x, (HEAD_DIM,), torch.from_numpy(norm), 1e-2)
        pairs = (
            torch.complex(x[..., :3], x[..., 3:6])
            * torch.polar(torch.tensor(1.5), torch.from_numpy(angles[:9]))[:, None]
        )
        return torch.cat([pairs.real, pairs.imag, x[..., 6:]], dim=-1)

    heads = torch.from_numpy(qkv).reshape(9, -1, HEAD_DIM)
    q, k, v = heads[:, :HEADS], heads[:, HEADS : HEADS + KV_HEADS], heads[:, HEADS + KV_HEADS :]
    by_hand = torch.cat([prepare(q, q_norm), prepare(k, k_norm), v], dim=1).reshape(9, -1).numpy()
    close(attention_over(Bench(), layer, qkv, [(0, 0, 9)]), attention_oracle(by_hand, LAYER))


def test_copied_blocks_continue_as_their_originals() -> None:
    bench, qkv = Bench(), random(7, WIDTH)
    compiled = bench.compile(lambda ops: ops.embedding(parameter(qkv), "input_ids"))
    attention_over(bench, LAYER, qkv[:6], [(0, 0, 6)])
    compiled.copy_blocks(bench.tables[0][0, :2], bench.tables[0][2, :2])
    close(attention_over(bench, LAYER, qkv[6:], [(2, 6, 7)]), attention_oracle(qkv, LAYER)[6:])


def test_copies_happen_in_order() -> None:
    bench = Bench()
    blocks = bench.pool.reshape(NUM_BLOCKS, -1)
    blocks[:4] = np.arange(4, dtype=np.uint8)[:, None]
    compiled = bench.compile(lambda ops: ops.embedding(parameter(random(2, 2)), "input_ids"))
    compiled.copy_blocks(np.array([1, 2, 1], np.int32), np.array([2, 3, 1], np.int32))
    assert blocks[:4, 0].tolist() == [0, 1, 1, 1]


def test_logits_are_of_the_tokens_asked_for() -> None:
    x = random(6, 4)
    bench = Bench()
    compiled = bench.compile(lambda ops: ops.embedding(parameter(x), "input_ids"))
    compiled.forward(bench.step([(0, 0, 6)]))
    close(compiled.logits(np.array([5, 0, 5], np.int32)), x[[5, 0, 5]])


def test_backend_is_importable_without_torch() -> None:
    code = (
        "import sys; from octavo.kernels.reference.device import ReferenceDevice; b = ReferenceDevice(); "
        "assert b.why_not() is None; assert 'torch' not in sys.modules; sys.path.clear(); "
        "sys.path_importer_cache.clear(); print(b.why_not())"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'octavo[reference]'" in done.stdout
