"""The recorder and its buffers: sharing must not change a program's result."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.ops import Ops, Tensor
from octavo.kernels.parameters import Linear
from octavo.kernels.program.recorder import Recorder, share_buffers
from octavo.kernels.reference.device import ReferenceDevice
from octavo.testing.made_parameters import linear, parameter
from octavo.testing.op_harness import Pool, random_table, run_once

WIDTH = 24


def random_linear(rng: np.random.Generator, rows: int, cols: int) -> Linear:
    return linear(rng.standard_normal((rows, cols), np.float32) * np.float32(cols**-0.5))


def random_program(seed: int, ops: Ops) -> Tensor:
    """A residual stream and a few live tensors, combined at random; none is used after it was consumed."""
    rng = np.random.default_rng(seed)
    weight = parameter(rng.standard_normal(WIDTH, np.float32))
    layer = AttentionLayer(0, 0, 3, 1, 8, 0.3)
    live = [ops.embedding(random_table(WIDTH, seed), "input_ids")]
    for _ in range(30):
        index = int(rng.integers(len(live)))
        x = live[index]
        match rng.integers(8):
            case 0:
                live.append(ops.linear(x, random_linear(rng, WIDTH, WIDTH)))
            case 1:
                live.append(ops.rms_norm(x, weight, 1e-5))
            case 2:
                up = ops.linear(x, random_linear(rng, 2 * WIDTH, WIDTH))
                live.append(ops.gated_activation(up, "silu"))
            case 3:
                live[index] = ops.activation(x, "gelu")
            case 4:
                q = ops.rotary_kv_write(ops.linear(x, random_linear(rng, 40, WIDTH)), layer)
                live.append(ops.paged_attention(q, layer))
            case 5 if len(live) > 1:
                live.append(ops.add(live.pop(index), live.pop()))
            case 6 if len(live) > 1:
                live += ops.add_rms_norm(live.pop(index), live.pop(), weight, 1e-5)
            case _:
                live.append(ops.layer_norm(x, weight, None, 1e-5))
    while len(live) > 1:
        live.append(ops.add(live.pop(), live.pop()))
    return ops.rms_norm(live[0], weight, 1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_compute_what_the_reference_does(seed: int) -> None:
    results = [
        run_once(backend, lambda ops: random_program(seed, ops), WIDTH, 33, Pool(num_kv_heads=1, head_dim=8))
        for backend in (CpuDevice(2), ReferenceDevice())
    ]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-4)


def decoder_block(ops: Ops, x: Tensor, residual: Tensor, layer: AttentionLayer) -> tuple[Tensor, Tensor]:
    rng, weight = np.random.default_rng(0), parameter(np.ones(WIDTH, np.float32))
    q = ops.rotary_kv_write(ops.linear(x, random_linear(rng, 40, WIDTH)), layer)
    x = ops.linear(ops.paged_attention(q, layer), random_linear(rng, WIDTH, WIDTH))
    x, residual = ops.add_rms_norm(x, residual, weight, 1e-5)
    x = ops.gated_activation(ops.linear(x, random_linear(rng, 128, WIDTH)), "silu")
    return ops.add_rms_norm(ops.linear(x, random_linear(rng, WIDTH, 64)), residual, weight, 1e-5)


def test_buffers_do_not_grow_with_depth() -> None:
    widths = []
    for num_layers in (1, 12):
        recorder = Recorder()
        residual = recorder.embedding(random_table(WIDTH), "input_ids")
        x = recorder.rms_norm(residual, parameter(np.ones(WIDTH, np.float32)), 1e-5)
        for index in range(num_layers):
            x, residual = decoder_block(recorder, x, residual, AttentionLayer(0, index, 3, 1, 8, 0.3))
        widths.append(sorted(share_buffers(recorder.instructions, (), (x, residual)).widths))
    assert widths[0] == widths[1]
    assert len(widths[1]) <= 4


def test_reading_a_consumed_tensor_is_refused() -> None:
    recorder = Recorder()
    x = recorder.embedding(random_table(WIDTH), "input_ids")
    recorder.activation(x, "relu")
    with pytest.raises(AssertionError, match="rms_norm reads a tensor that an earlier op consumed"):
        recorder.rms_norm(x, parameter(np.ones(WIDTH, np.float32)), 1e-5)


def test_widths_that_do_not_fit_are_refused_when_recorded() -> None:
    recorder = Recorder()
    x = recorder.embedding(random_table(WIDTH), "input_ids")
    with pytest.raises(AssertionError, match="linear of 25 columns on a tensor of 24"):
        recorder.linear(x, random_linear(np.random.default_rng(0), 3, 25))
