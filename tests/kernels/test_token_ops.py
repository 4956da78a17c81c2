"""Ops that work on each token separately: the cpu backend against the reference and against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest

from octavo.kernels.arrays import FloatArray
from octavo.kernels.attention_layer import AttentionLayer, RotaryTable
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.ops import OPS, Activation, Ops, Tensor
from octavo.kernels.parameters import Parameter
from octavo.kernels.reference.device import ReferenceDevice
from octavo.kernels.tensor import HostTensor
from octavo.testing.made_parameters import linear, parameter
from octavo.testing.op_harness import NUM_ROWS, Pool, random_table, run_once
from tests.kernels.elementwise_cases import CASES, Case

WIDTHS = [1, 7, 16, 576, 1003]
NUM_TOKENS = (1, 3, 150)


def array(*shape: int, seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def compare(function: Callable[[Ops], Tensor], width: int, pool: Pool | None = None, rtol: float = 2e-6) -> None:
    for num_tokens in NUM_TOKENS:
        ours = run_once(CpuDevice(2), function, width, num_tokens, pool)
        theirs = run_once(ReferenceDevice(), function, width, num_tokens, pool)
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("width", WIDTHS)
def test_norms(width: int) -> None:
    table, other = random_table(width), random_table(width, seed=2)
    weight, bias = parameter(array(width)), parameter(array(width, seed=3))
    compare(
        lambda ops: ops.rms_norm(ops.embedding(table, "input_ids"), weight, 1e-5), width, rtol=OPS["rms_norm"].error
    )
    for given in (bias, None):
        compare(
            lambda ops, b=given: ops.layer_norm(ops.embedding(table, "input_ids"), weight, b, 0.1),
            width,
            rtol=OPS["layer_norm"].error,
        )

    first, second = width // 2, width - width // 2
    some, others = parameter(array(first)), parameter(array(second))
    compare(
        lambda ops: ops.norm_queries_keys(ops.embedding(table, "input_ids"), some, others, first, second, 1e-5),
        width,
        rtol=OPS["norm_queries_keys"].error,
    )

    def add_rms_norm(ops: Ops) -> Tensor:
        """Both results are checked, by adding the sum to the norm."""
        x, residual = ops.embedding(table, "input_ids"), ops.embedding(other, "input_ids")
        normed, total = ops.add_rms_norm(x, residual, weight, 1e-5)
        return ops.add(normed, total)

    compare(add_rms_norm, width, rtol=OPS["add_rms_norm"].error)


def test_every_elementwise_op_has_a_case() -> None:
    assert {case.name for case in CASES} == {op.name for op in OPS.values() if op.is_elementwise}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_elementwise_ops(case: Case) -> None:
    for width in WIDTHS:
        tables = [random_table(width, seed) for seed in range(len(case.op.inputs))]

        def function(ops: Ops, tables: list[Parameter] = tables) -> Tensor:
            return case.call(ops, *(ops.embedding(table, "input_ids") for table in tables))

        compare(function, width, rtol=case.op.error)
        ours = run_once(CpuDevice(1), function, width, NUM_ROWS)
        rows = (table.compact().data.view(np.float32).reshape(table.shape) for table in tables)
        np.testing.assert_allclose(ours, case.expected(*rows), rtol=case.op.error, atol=case.op.error)


@pytest.mark.parametrize("kind", get_args(Activation))
def test_gated_activations(kind: Activation) -> None:
    for width in WIDTHS:
        gate_up = random_table(2 * width)
        compare(lambda ops, t=gate_up: ops.gated_activation(ops.embedding(t, "input_ids"), kind), width)


def values_table(values: FloatArray) -> Parameter:
    return parameter(np.resize(values.astype(np.float32), (NUM_ROWS, len(values))))


@pytest.mark.parametrize("case", [case for case in CASES if case.name == "activation"], ids=str)
def test_activations_are_accurate_to_a_few_units_in_the_last_place(case: Case) -> None:
    x = np.concatenate([np.linspace(-12, 12, 4001), np.geomspace(1e-20, 1, 500), -np.geomspace(1e-20, 1, 500)])
    table = values_table(x)
    ours = run_once(CpuDevice(1), lambda ops: case.call(ops, ops.embedding(table, "input_ids")), len(x), 1)
    exact = case.expected(x.astype(np.float32))
    # An exponent's rounding grows with it: exp(-x^2 / 2) at x = -12 carries 72 times its argument's error.
    error = np.abs(ours[0] - exact) / np.maximum(np.abs(exact), 1e-30)
    assert error[np.abs(x) < 4].max() < 2e-6
    assert np.abs(ours[0] - exact).max() < 2e-6


def test_softcap_is_accurate() -> None:
    x = np.concatenate([np.linspace(-300, 300, 2001), np.geomspace(1e-20, 30, 1000)])
    table = values_table(x)
    ours = run_once(CpuDevice(1), lambda ops: ops.softcap(ops.embedding(table, "input_ids"), 30.0), len(x), 1)
    exact = 30 * np.tanh(x.astype(np.float32).astype(np.float64) / 30)
    np.testing.assert_allclose(ours[0], exact, rtol=1e-6)


def test_special_values_pass_through() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 100.0, -100.0, 0.0], np.float32)
    table = values_table(x)
    for kind in get_args(Activation):
        ours = run_once(CpuDevice(1), lambda ops, k=kind: ops.activation(ops.embedding(table, "input_ids"), k), 6, 1)[0]
        assert np.isnan(ours[0]), f"{kind} loses a NaN"
        assert ours[1] == np.inf
        assert ours[3] == 100.0
        assert abs(ours[4]) < 1e-30
        assert ours[5] == 0.0
    capped = run_once(CpuDevice(1), lambda ops: ops.softcap(ops.embedding(table, "input_ids"), 2.0), 6, 1)[0]
    np.testing.assert_array_equal(capped, [np.nan, 2, -2, 2, -2, 0])


def test_embedding_of_tokens_and_positions() -> None:
    table = random_table(40)
    compare(lambda ops: ops.embedding(table, "input_ids", scale=3.5), 40)
    positions = parameter(array(200, 40))
    compare(lambda ops: ops.add(ops.embedding(table, "input_ids"), ops.embedding(positions, "positions", offset=2)), 40)


def test_embedding_of_a_quantised_table() -> None:
    rng = np.random.default_rng(0)
    scales = rng.standard_normal((NUM_ROWS, 2, 1)).astype(np.float16).view(np.uint8)
    table = HostTensor(
        "Q8_0",
        (NUM_ROWS, 64),
        np.concatenate([scales, rng.integers(0, 256, (NUM_ROWS, 2, 32), np.uint8)], axis=-1).reshape(-1),
    )
    compare(lambda ops: ops.embedding(parameter(table), "input_ids"), 64, rtol=0)


def test_an_unknown_token_is_an_error_not_a_wild_read() -> None:
    table = parameter(array(NUM_ROWS - 1, 8))
    with pytest.raises(AssertionError, match=f"embedding row {NUM_ROWS - 1} of a table of {NUM_ROWS - 1}"):
        run_once(CpuDevice(1), lambda ops: ops.embedding(table, "input_ids"), 8, NUM_ROWS)


@pytest.mark.parametrize(("head_dim", "rotary_dim", "norms"), [(64, 64, False), (16, 8, True), (10, 10, True)])
def test_rotation_and_head_norms(head_dim: int, rotary_dim: int, norms: bool) -> None:
    angles = np.outer(np.arange(768), 0.5 ** np.arange(rotary_dim // 2)).astype(np.float32)
    layer = AttentionLayer(
        *(0, 0, 6, 2, head_dim, 1.0),
        q_norm=parameter(array(head_dim)) if norms else None,
        k_norm=parameter(array(head_dim, seed=2)) if norms else None,
        rotary=RotaryTable(np.cos(angles), np.sin(angles)),
    )
    table = random_table(10 * head_dim)
    pool = Pool(num_kv_heads=2, head_dim=head_dim)
    compare(
        lambda ops: ops.rotary_kv_write(ops.embedding(table, "input_ids"), layer),
        6 * head_dim,
        pool,
        rtol=OPS["rotary_kv_write"].error,
    )


def test_linear_joins_parts_of_several_types() -> None:
    parts = [array(5, 64), array(9, 64, seed=2), array(4, 64, seed=3).astype(np.float16), array(3, 64, seed=4)]
    weight = linear(*parts, bias=array(21, seed=5))
    table = random_table(64)
    compare(lambda ops: ops.linear(ops.embedding(table, "input_ids"), weight), 21, rtol=OPS["linear"].error)
