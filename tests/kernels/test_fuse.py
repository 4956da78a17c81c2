"""Fusing a recorded layer: what is fused, what is not, and that no result loses its memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from octavo.kernels.adapters import AdaptedModule, AdaptedPart, AdapterSizes
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.mixture import Routing
from octavo.kernels.op import Op
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear
from octavo.kernels.program.fuse import Fusions, fuse, without_adapters
from octavo.kernels.program.recorder import Recorder, Recording
from octavo.testing.made_parameters import linear, mixture, parameter

WIDTH = 8
NORM = parameter(np.ones(WIDTH, np.float32))
LAYER = AttentionLayer(0, 0, num_heads=1, num_kv_heads=1, head_dim=WIDTH, scale=1.0)
EVERYTHING = Fusions(attention=True, residual=True, takes_norm=lambda *shape: True, takes_gate=lambda *shape: True)


def weight(rows: int, cols: int = WIDTH, *, has_bias: bool = False) -> Linear:
    return linear(np.zeros((rows, cols), np.float32), bias=np.zeros(rows, np.float32) if has_bias else None)


def layer(*, has_bias: bool = False) -> Recording:
    ops = Recorder()
    residual = ops.new_value(WIDTH)
    return Recording(ops.instructions, (run_layer(ops, residual, has_bias=has_bias),), (residual,))


def run_layer(ops: Ops, residual: Tensor, *, has_bias: bool = False) -> Tensor:
    """A llama's layer and the norm after it."""
    q = ops.rotary_kv_write(ops.linear(ops.rms_norm(residual, NORM, 1e-6), weight(3 * WIDTH)), LAYER)
    out = ops.linear(ops.paged_attention(q, LAYER), weight(WIDTH, has_bias=has_bias))
    x, total = ops.add_rms_norm(out, residual, NORM, 1e-6)
    gated = ops.gated_activation(ops.linear(x, weight(4 * WIDTH)), "silu")
    hidden, _ = ops.add_rms_norm(ops.linear(gated, weight(WIDTH, 2 * WIDTH)), total, NORM, 1e-6)
    return hidden


def names(recording: Recording) -> list[str]:
    """Each op, with the ops fused into it."""
    return [
        "+".join(
            [
                i.op,
                *("residual" for _ in i.inputs[1:] if i.op == "linear"),
                *({"gate", "norm_weight"} & set(i.arguments)),
            ]
        )
        for i in recording.instructions
    ]


def test_a_layer_becomes_five_instructions() -> None:
    fused = fuse(layer(), EVERYTHING)
    assert names(fused)[:3] == ["linear+norm_weight", "attention", "linear+residual"]
    assert sorted(names(fused)[3].split("+")) == ["gate", "linear", "norm_weight"]
    assert names(fused)[4:] == ["linear+residual", "rms_norm"], "the last norm is the next layer's"
    assert fused.instructions[-1].outputs[:1] == fused.kept


def test_a_product_with_a_bias_adds_the_residual_where_it_can() -> None:
    biased = layer(has_bias=True)
    fused = fuse(biased, replace(EVERYTHING, adds_both=lambda *shape: shape == (WIDTH, WIDTH)))
    assert names(fused) == names(fuse(layer(), EVERYTHING))
    assert "linear+residual" not in names(fuse(biased, EVERYTHING))[:3]


def test_a_mixtures_router_takes_the_norm_where_it_can() -> None:
    """The residual that is normed is then also the one that is added."""
    ops = Recorder()
    residual, one = ops.new_value(WIDTH), mixture(Routing(num_experts=2, num_chosen=1), WIDTH, WIDTH)
    x, total = ops.add_rms_norm(ops.linear(residual, weight(WIDTH)), residual, NORM, 1e-6)
    recording = Recording(ops.instructions, (ops.add(ops.mixture(x, one), total),), (residual,))
    fused = fuse(recording, replace(EVERYTHING, routes_norm=lambda layer: layer is one))
    assert names(fused) == ["linear+residual", "mixture+norm_weight"]
    assert fused.instructions[1].inputs == (*fused.instructions[0].outputs,) * 2
    assert names(fuse(recording, EVERYTHING)) == ["linear+residual", "rms_norm", "mixture"]


def test_a_mixtures_end_takes_the_norm_after_it() -> None:
    """Not if its sum is the residual there; and rows that become fp8 for the next product do so in the norm alone."""
    ops = Recorder()
    residual, one = ops.new_value(WIDTH), mixture(Routing(num_experts=2, num_chosen=1), WIDTH, WIDTH)
    x, total = ops.add_rms_norm(ops.mixture(ops.rms_norm(residual, NORM, 1e-6), one), residual, NORM, 1e-5)
    y, rest = ops.add_rms_norm(x, ops.mixture(x, one), NORM, 1e-6)
    out = ops.linear(y, weight(WIDTH))
    recording = Recording(ops.instructions, (out, total, rest), (residual,))
    fused = fuse(recording, Fusions(residual=True, mixture_norm=True))
    joined = "mixture_add_rms_norm+norm_weight"
    assert names(fused) == ["rms_norm", joined, "mixture", "add_rms_norm", "linear"]
    instruction = fused.instructions[1]
    assert instruction.inputs == (fused.instructions[0].outputs[0], residual)
    assert instruction.outputs == (x, total)
    assert instruction.arguments == {"layer": one, "norm_weight": NORM, "eps": 1e-5}
    assert total.storage == residual.storage, "the sum is in the residual's memory"
    ops = Recorder()
    x, total = ops.add_rms_norm(ops.mixture(residual, one), residual, NORM, 1e-5)
    recording = Recording(ops.instructions, (ops.linear(x, weight(WIDTH)), total), (residual,))
    assert names(fuse(recording, replace(QUANTISES, mixture_norm=True))) == ["mixture", "quantising_linear+norm_weight"]


def adapted() -> Recording:
    """With slots for adapters behind each product."""
    ops = Recorder()

    class Adapting(Ops):
        def apply(self, op: Op, inputs: tuple[Tensor, ...], arguments: dict[str, Any]) -> Any:
            result = ops.apply(op, inputs, arguments)
            if op.name != "linear":
                return result
            half = (result.width // 2,) * 2 if result.width == 4 * WIDTH else (result.width,)
            parts = tuple(AdaptedPart(f"part {n}", (n, inputs[0].width)) for n in half)
            return ops.add_adapters(result, inputs[0], AdaptedModule(parts, AdapterSizes(2, 4)))

    residual = ops.new_value(WIDTH)
    return Recording(ops.instructions, (run_layer(Adapting(), residual),), (residual,))


def test_adapters_leave_a_products_fusions_and_take_the_gate() -> None:
    fused = fuse(adapted(), replace(EVERYTHING, adapters=True, parts=True))
    joined = "linear_add_rms_norm+norm_weight"
    assert names(fused) == ["rms_norm", "linear", "attention", joined, "linear", "add_adapters+gate", joined]
    assert [i.arguments.get("adapters") is not None for i in fused.instructions if "linear" in i.op] == [
        True, True, False, True
    ]  # fmt: skip


def test_without_adapters_a_layer_is_as_if_there_were_none() -> None:
    plain = fuse(without_adapters(adapted()), EVERYTHING)
    assert names(plain) == names(fuse(layer(), EVERYTHING))
    assert plain.kept == plain.instructions[-1].outputs[:1]


def test_residuals_alone_where_products_take_no_norm() -> None:
    fused = fuse(layer(), Fusions(attention=True, residual=True))
    middle = ["rms_norm", "linear", "gated_activation"]
    assert names(fused) == [
        "rms_norm",
        "linear",
        "attention",
        "linear+residual",
        *middle,
        "linear+residual",
        "rms_norm",
    ]


def test_a_norm_sums_the_parts_of_the_product_before_it() -> None:
    fused = fuse(layer(), Fusions(attention=True, residual=True, parts=True, takes_gate=lambda *shape: True))
    joined = "linear_add_rms_norm+norm_weight"
    assert names(fused) == ["rms_norm", "linear", "attention", joined, "linear+gate", joined]
    out, total = fused.instructions[3].outputs
    assert total.storage == fused.instructions[3].inputs[1].storage, "the sum is in the residual's memory"
    assert fused.instructions[4].inputs == (out,)


QUANTISES = Fusions(
    attention=True, residual=True, parts=True, fuses=lambda weight, gated: False, quantises=lambda weight: True
)


def test_rows_become_fp8_in_what_gives_them() -> None:
    """Not those of attention, which no one kernel gives whole."""
    fused = fuse(layer(), QUANTISES)
    one = "quantising_linear"
    assert [i.op for i in fused.instructions] == [one, "attention", "linear", one, one, "add_rms_norm"]
    first, _, out, up, down, last = fused.instructions
    assert (first.arguments["norm_weight"], down.arguments["activation"]) == (NORM, "silu")
    product, total = up.outputs
    assert up.inputs == (out.outputs[0], *first.inputs)
    assert (total.storage, product.width) == (first.inputs[0].storage, 4 * WIDTH)
    assert down.inputs == (product,)
    assert last.inputs == (down.outputs[0], total)


def test_a_product_leaves_its_scales_to_what_makes_fp8_of_it() -> None:
    fused = fuse(layer(), replace(QUANTISES, leaves_scales=True))
    first, _, out, up, down, _ = fused.instructions
    assert out.op == "quantising_linear"
    assert [bool(i.arguments.get("leaves_scales")) for i in (first, out, up, down)] == [False, True, True, False]
    assert "left_by" not in out.arguments
    assert up.arguments["left_by"] is out.arguments["weight"]
    assert down.arguments["left_by"] is up.arguments["weight"]
    attends = replace(QUANTISES, leaves_scales=True, scales_projection=lambda layer: True)
    first, attention, *_ = fuse(layer(), attends).instructions
    assert (first.arguments["leaves_scales"], attention.arguments["left_by"]) == (True, first.arguments["weight"])
    biased = fuse(layer(has_bias=True), replace(QUANTISES, leaves_scales=True))
    assert biased.instructions[2].op == "linear", "whoever makes fp8 of it knows no bias"


def test_what_gives_rows_deals_their_inputs() -> None:
    """Not attention; and not for a product whose rows an adapter reads, too."""
    recording = layer()
    fused = fuse(recording, Fusions(deals=lambda weight: True))
    assert [i.op for i in fused.instructions] == [i.op for i in recording.instructions]
    deals = {i.op for i in fused.instructions if "deals_for" in i.arguments}
    assert deals == {"rms_norm", "add_rms_norm", "gated_activation"}
    for first, second in zip(fused.instructions, fused.instructions[1:], strict=False):
        assert second.arguments.get("is_dealt", False) == ("deals_for" in first.arguments)
        assert not second.arguments.get("is_dealt") or first.arguments["deals_for"] is second.arguments["weight"]
    assert not any("deals_for" in i.arguments for i in fuse(recording, Fusions()).instructions)
    assert names(fuse(recording, Fusions(deals=lambda weight: True, parts=True))) == names(fused), "its sums are whole"


def test_a_product_with_a_bias_keeps_its_sum_apart() -> None:
    assert "add_rms_norm" in names(fuse(layer(has_bias=True), EVERYTHING))


def test_nothing_fused_but_queries_of_their_own() -> None:
    recording = layer()
    plain = fuse(recording, Fusions())
    assert [i.op for i in plain.instructions] == [i.op for i in recording.instructions]
    rotary = next(i for i in plain.instructions if i.op == "rotary_kv_write")
    assert rotary.outputs[0].storage != rotary.inputs[0].storage


def test_a_result_that_is_read_twice_stays() -> None:
    ops = Recorder()
    x = ops.rms_norm(ops.new_value(WIDTH), NORM, 1e-6)
    y = ops.linear(x, weight(WIDTH))
    kept = ops.add(ops.linear(x, weight(WIDTH)), y)
    assert "rms_norm" in names(fuse(Recording(ops.instructions, (kept,)), EVERYTHING))


def test_a_sum_of_ranks_takes_the_norm_after_it() -> None:
    """Into the memory of the sum and of the residual, where later instructions read them; not if something else reads
    the sum, nor if it is the residual."""
    ops = Recorder()
    residual, x, other = (ops.new_value(WIDTH) for _ in range(3))
    y, total = ops.add_rms_norm(ops.all_reduce(ops.linear(x, weight(WIDTH))), residual, NORM, 1e-6)
    z, rest = ops.add_rms_norm(y, ops.all_reduce(other), NORM, 1e-6)
    out = ops.add(ops.all_reduce(z), total)
    recording = Recording(ops.instructions, (out, rest), (residual, x, other))
    fused = fuse(recording, Fusions(residual=True, parts=True, all_reduce=True))
    sums = ["linear", "all_reduce_add_rms_norm", "all_reduce", "add_rms_norm", "all_reduce", "add"]
    assert [i.op for i in fused.instructions] == sums
    instruction = fused.instructions[1]
    assert instruction.inputs == (fused.instructions[0].outputs[0], residual)
    assert instruction.outputs == (y, total)
    assert [value.storage for value in instruction.inputs] == [value.storage for value in instruction.outputs]
    assert names(fuse(recording, Fusions())) == names(recording)
