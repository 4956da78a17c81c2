"""Each parameter's shard rule: two ranks' parts add up to the whole parameter, and to the layer's whole result."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from octavo.kernels.arrays import FloatArray
from octavo.kernels.parameters import Linear, Parameter, Shard
from octavo.kernels.program.recorder import Recording, record_model
from octavo.kernels.reference.dequantize import values
from octavo.models.registry import build_model, required_tensors
from tests.models.architectures import ARCHITECTURES, SLOTS
from tests.models.symbolic import DrawnTensors

families = pytest.mark.parametrize("family", ARCHITECTURES)
RANKS = 2

#: the rule by the last words of a name; the first match counts, and names without a match are replicated
RULES = {
    ("embed_tokens.weight", "wte.weight", "lm_head.weight"): "column",
    ("q_proj.weight", "k_proj.weight", "v_proj.weight", "qkv_proj.weight", "c_attn.weight"): "heads",
    ("q_b_proj.weight", "kv_b_proj.weight"): "heads",
    ("q_proj.bias", "k_proj.bias", "v_proj.bias", "c_attn.bias", "self_attn.sinks"): "heads",
    ("w1.weight", "w3.weight", "gate_proj.bias", "up_proj.bias"): "column",
    ("w2.weight",): "row",
    ("gate_proj.weight", "up_proj.weight", "c_fc.weight", "c_fc.bias", "fc1.weight", "fc1.bias"): "column",
    ("o_proj.weight", "out_proj.weight", "c_proj.weight", "down_proj.weight", "fc2.weight"): "row",
}


def recordings(family: str) -> list[Recording]:
    body, heads = record_model(build_model(ARCHITECTURES[family], DrawnTensors(), SLOTS, max_model_len=64))
    return [body, *heads.values()]


def parameters(family: str) -> dict[str, Parameter]:
    return {each.name: each for recording in recordings(family) for each in recording.parameters()}


def index(shard: Shard, shape: tuple[int, ...], rank: int) -> tuple[slice | list[int], ...]:
    dimension, slices = shard.slices(shape, rank, RANKS)
    places = [place for each in slices for place in range(each.start, each.stop)]
    return (*([slice(None)] * dimension), places)


def part(parameter: Parameter, rank: int) -> FloatArray:
    return values(parameter)[index(parameter.shard, parameter.shape, rank)]


@families
def test_every_parameter_has_its_rule(family: str) -> None:
    found = parameters(family)
    assert set(found) >= set(required_tensors(ARCHITECTURES[family]))
    for name, parameter in found.items():
        if family in ("olmo2", "olmoe") and name.endswith(("q_norm.weight", "k_norm.weight")):  # of all heads together
            assert parameter.shard.kind == "heads"
            continue
        rules = (rule for endings, rule in RULES.items() if name.endswith(tuple(endings)))
        assert parameter.shard.kind == next(rules, "replicated"), name


@families
def test_two_ranks_parts_make_the_whole(family: str) -> None:
    for name, parameter in parameters(family).items():
        whole, times = np.zeros(parameter.shape, np.float32), np.zeros(parameter.shape, int)
        for rank in range(RANKS):
            whole[index(parameter.shard, parameter.shape, rank)] = part(parameter, rank)
            times[index(parameter.shard, parameter.shape, rank)] += 1
        assert np.array_equal(whole, values(parameter)), name
        assert (times == (RANKS if parameter.shard.kind == "replicated" else 1)).all(), name


@families
def test_two_ranks_compute_what_one_does(family: str) -> None:
    """Each layer's halves: the outputs of a column rule are the inputs of the next row rule."""
    a = ARCHITECTURES[family]
    instructions = [each for recording in recordings(family) for each in recording.instructions]
    linears = [each.arguments["weight"] for each in instructions if each.op == "linear"]
    neighbours = [(first, second) for first, second in pairwise(linears) if rule(first) != "replicated"]
    pairs = [(first, second) for first, second in neighbours if rule(second) == "row"]
    num_dense = len(pairs)
    mixtures = [each.arguments["layer"] for each in instructions if each.op == "mixture"]
    for mixture in mixtures:
        pairs += zip(mixture.gate_up.experts, mixture.down.experts, strict=True)
    x = np.random.default_rng(0).standard_normal((3, a.hidden_size))
    for first, second in pairs:
        width = second.in_features
        kept = slice(0, width) if rule(first) == "heads" else slice(None)  # queries; keys and values are cached
        whole = halve(x @ stacked(first).T, width, kept) @ stacked(second).T
        ranks = [
            halve(x @ stacked(first, rank).T, width // RANKS, slice(0, width // RANKS) if kept.stop else kept)
            @ stacked(second, rank).T
            for rank in range(RANKS)
        ]
        np.testing.assert_allclose(sum(ranks), whole, rtol=1e-6, atol=1e-6)
    has_shared = a.experts is not None and a.experts.shared_size > 0
    halves = 2 if a.latent is None else 1  # the outputs of latent attention are no linear's
    assert num_dense == halves * a.num_layers - (0 if has_shared else len(mixtures))


def rule(linear: Linear) -> str:
    (kind,) = {part.shard.kind for part in linear.parts}
    return kind


def stacked(linear: Linear, rank: int | None = None) -> np.ndarray:
    parts = [values(each) if rank is None else part(each, rank) for each in linear.parts]
    return np.concatenate(parts).astype(np.float64)


def halve(x: np.ndarray, width: int, kept: slice) -> np.ndarray:
    """The kept columns; for a gate and its values, their product."""
    x = x[:, kept]
    return x[:, :width] * x[:, width:] if x.shape[1] == 2 * width else x


def test_ranks_that_share_a_key_head_each_have_it() -> None:
    shard = Shard.heads(8, 2)
    assert [shard.slices((2 * 16, 64), rank, 4)[1] for rank in range(4)] == [
        (slice(0, 16),), (slice(0, 16),), (slice(16, 32),), (slice(16, 32),)
    ]  # fmt: skip


def test_scales_are_shared_as_their_matrix_is() -> None:
    rows, columns = Shard.rows(256), Shard.columns(64, 2)
    assert rows.slices((512, 256 // 32), 1, 2) == (1, (slice(4, 8),)), "a scale for 32 columns"
    assert columns.slices((64, 1), 1, 2) == (0, (slice(16, 32), slice(48, 64))), "a scale for a row"
    with pytest.raises(AssertionError, match="no boundary"):
        rows.slices((512, 1), 0, 2)
