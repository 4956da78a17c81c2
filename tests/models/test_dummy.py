"""Dummy weights: reproducible, of sensible size, and drawn fast."""

from __future__ import annotations

import time

import numpy as np

from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.tensor import RandomTensor
from octavo.models.dummy import draw_tensor, dummy_tensors
from tests.models.architectures import ARCHITECTURES

LLAMA, GEMMA = ARCHITECTURES["llama"], ARCHITECTURES["gemma3"]


def test_a_tensor_depends_on_seed_and_name_and_nothing_else() -> None:
    table = {"a.weight": (30, 20), "b.weight": (30, 20)}
    forwards = dummy_tensors(LLAMA, table, "F32", seed=3)
    backwards = dummy_tensors(LLAMA, dict(reversed(table.items())), "F32", seed=3)
    b, a = backwards["b.weight"].read(), backwards["a.weight"].read()
    assert np.array_equal(forwards["a.weight"].read().data, a.data)
    assert not np.array_equal(a.data, b.data)
    assert not np.array_equal(a.data, draw_tensor(LLAMA, "a.weight", (30, 20), "F32", 4).data)


def test_sizes_keep_activations_at_one() -> None:
    wide = dequantize(draw_tensor(LLAMA, "w.weight", (64, 10_000), "F32", 0))
    narrow = dequantize(draw_tensor(LLAMA, "n.weight", (512, 100), "F32", 0))
    assert abs(wide.std() * 100 - 1) < 0.01
    assert abs(narrow.std() / 0.02 - 1) < 0.02
    assert abs(float(wide.mean())) < 1e-4


def test_vectors_are_where_training_starts() -> None:
    def values(architecture: object, name: str) -> set[float]:
        return set(dequantize(draw_tensor(architecture, name, (8,), "BF16", 0)).tolist())  # type: ignore[arg-type]

    assert values(LLAMA, "model.norm.weight") == {1.0}
    assert values(GEMMA, "model.norm.weight") == {0.0}
    assert values(LLAMA, "self_attn.q_proj.bias") == {0.0}


def test_a_large_tensor_has_no_two_rows_alike_and_comes_fast() -> None:
    start = time.process_time()
    tensor = draw_tensor(LLAMA, "w.weight", (4096, 4096), "BF16", 0)
    seconds = time.process_time() - start
    rows = tensor.row_data
    assert len(np.unique(rows[:, :64], axis=0)) == 4096
    assert seconds < 1.0, "an 8B model has 480 times as many weights"


def test_matrices_left_to_a_device_take_no_memory_here() -> None:
    required = {"a.weight": (64, 32), "norm.weight": (32,)}
    stored = dummy_tensors(LLAMA, required, "BF16", 0, on_device=True)
    matrix, again = stored["a.weight"].read(), stored["a.weight"].read()
    assert isinstance(matrix, RandomTensor)
    assert isinstance(again, RandomTensor)
    assert matrix.data.strides == (0,)
    assert (matrix.seed, matrix.std) == (again.seed, again.std)
    assert not isinstance(stored["norm.weight"].read(), RandomTensor)
